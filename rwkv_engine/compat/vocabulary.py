"""What the `rwkv` package's WORD_NAME means: a file's path, or the name of one of two vocabularies."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from rwkv_engine.compat.rwkv_tokenizer import TRIE_TOKENIZER
from rwkv_engine.errors import TokenizerError
from rwkv_engine.text.find import N_VOCAB_20B, WORLD_FILE, find_world
from rwkv_engine.text.ids import padded

WORLD = WORLD_FILE.removesuffix(".txt")
OPENAI = "cl100k_base"


@dataclass(frozen=True)
class Vocabulary:
    """Text to ids and back.

    Attributes:
        name: a path, or what it was asked for by.
        n_vocab: one more than the largest id.
        tokenizer: what has it, of the kind that the package has there.
        encode: ids of a text.
        decode: text of ids; U+FFFD for what is no UTF-8.
    """

    name: str
    n_vocab: int
    tokenizer: Any
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]

    def check_fits(self, n_vocab: int) -> None:
        """Refuses a vocabulary that cannot be a model's: the package would read and write garbage.

        Raises:
            TokenizerError: with both sizes.
        """
        if not self.n_vocab <= n_vocab <= padded(self.n_vocab):
            raise TokenizerError(
                f"{self.name}: has {self.n_vocab} tokens, the model's vocabulary is {n_vocab}; it belongs to another"
                f" model: those of {N_VOCAB_20B} take 20B_tokenizer.json, those of 65536 {WORLD}"
            )


def load_vocabulary(word_name: str | Path, folder: Path, exact: bool) -> Vocabulary:
    """Finds and reads a vocabulary.

    Args:
        word_name: `rwkv_vocab_v20230424` (World), `cl100k_base`, or the path of a file of the `tokenizers` library, or
            of a World vocabulary (`.txt`).
        folder: of the model: what is not found as it is named is looked for there.
        exact: World text that is not all UTF-8 decodes to one U+FFFD, as in the package.

    Raises:
        TokenizerError: nothing there, or it cannot be read; where to get it.
    """
    if str(word_name) == OPENAI:
        return _openai()
    if str(word_name) == WORLD:
        path = find_world(folder)
        if path is None:
            raise TokenizerError(
                f"{WORLD_FILE}: not next to the model ({folder}), in the hub cache or in an installed rwkv package; put"
                " it next to the model: it comes with every RWKV World model, and is in BlinkDL/ChatRWKV"
            )
        return _world(path, exact)
    path = Path(word_name).expanduser()
    if not path.is_file():
        path = folder / path.name
    if not path.is_file():
        raise TokenizerError(
            f"{word_name}: no such file, here or next to the model ({folder}); 20B_tokenizer.json is in"
            f" BlinkDL/ChatRWKV, and as tokenizer.json in EleutherAI/gpt-neox-20b; for World models give '{WORLD}'"
        )
    return _world(path, exact) if path.suffix.lower() == ".txt" else _library(path)


def _world(path: Path, exact: bool) -> Vocabulary:
    world = TRIE_TOKENIZER(path)
    decode = world.decode if exact else super(TRIE_TOKENIZER, world).decode
    return Vocabulary(str(path), world.n_vocab, world, world.encode, decode)


def _library(path: Path) -> Vocabulary:
    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise TokenizerError(f"{path}: no tokenizer can be read here: {error}") from error
    n_vocab = 1 + max(library.get_vocab().values(), default=-1)
    return Vocabulary(str(path), n_vocab, library, lambda text: library.encode(text).ids, library.decode)


def _openai() -> Vocabulary:
    try:
        encoding = importlib.import_module("tiktoken").get_encoding(OPENAI)
    except ImportError as error:
        raise TokenizerError(f"{OPENAI}: needs the package tiktoken: pip install tiktoken") from error
    except Exception as error:  # it fetches a file when first asked for it
        raise TokenizerError(f"{OPENAI}: tiktoken cannot load it: {error}") from error
    return Vocabulary(OPENAI, encoding.n_vocab, encoding, encoding.encode, encoding.decode)
