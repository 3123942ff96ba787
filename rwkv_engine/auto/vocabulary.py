"""A vocabulary as transformers presents it: every id has a name, some ids are special, and files describe it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from rwkv_engine.errors import RequestError
from rwkv_engine.storage.atomic import replace_atomically
from rwkv_engine.text import BpeTokenizer, ByteTokenizer, Tokenizer, WorldTokenizer
from rwkv_engine.text.byte_characters import CHARACTER_OF, in_characters
from rwkv_engine.text.find import WORLD_FILE
from rwkv_engine.text.tokenizer import END_OF_TEXT


@dataclass(frozen=True)
class Vocabulary:
    """The names of a tokenizer's ids.

    Attributes:
        names: for each id its bytes as characters (`text.byte_characters`), or the written form of a special or added
            token; None for an unused id.
        special: ids of special tokens, which do not stand for text.
        n_base: the number of ids without added tokens.
    """

    names: list[str | None]
    special: frozenset[int]
    n_base: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """The vocabulary of a tokenizer."""
        if isinstance(tokenizer, BpeTokenizer):
            library = tokenizer.library
            names = [library.id_to_token(token) for token in range(tokenizer.n_vocab)]
            special = frozenset(i for i, added in library.get_added_tokens_decoder().items() if added.special)
            return cls(names, special, library.get_vocab_size(with_added_tokens=False))
        names = [in_characters(tokenizer.token_bytes(token)) or None for token in range(tokenizer.n_vocab)]
        end = tokenizer.end_of_text
        if end is not None:
            names[end] = END_OF_TEXT
        return cls(names, frozenset(() if end is None else (end,)), len(names))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each name."""
        return {name: token for token, name in enumerate(self.names) if name is not None}


def save(tokenizer: Tokenizer, settings: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """Writes the vocabulary, and `settings` as tokenizer_config.json, to a folder; returns the paths.

    Raises:
        RequestError: the files cannot be written.
    """
    try:
        if isinstance(tokenizer, WorldTokenizer):
            files = {WORLD_FILE: Path(tokenizer.name).read_text(encoding="utf-8")}
        else:
            library = tokenizer.library if isinstance(tokenizer, BpeTokenizer) else library_of_bytes()
            files = {"tokenizer.json": library.to_str(pretty=True)}
            # Without a class transformers would choose one by the kind of model.
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
        files["tokenizer_config.json"] = json.dumps(settings, indent=2) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with replace_atomically(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{folder}: the tokenizer cannot be written here: {error}") from error
    return tuple(str(folder / name) for name in files)


def library_of_bytes() -> tokenizers.Tokenizer:
    """`ByteTokenizer` in terms of the `tokenizers` library: byte-level BPE without merges."""
    vocabulary = {CHARACTER_OF[byte]: byte for byte in range(ByteTokenizer.N_VOCAB)}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return library
