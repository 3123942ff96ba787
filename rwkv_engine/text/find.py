"""Finds a model's tokenizer: by the names of files, by the folders where they may be, and by the sizes of both."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from rwkv_engine.errors import TokenizerError
from rwkv_engine.text.ids import padded
from rwkv_engine.text.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer
from rwkv_engine.text.world import WorldTokenizer

WORLD_FILE = "rwkv_vocab_v20230424.txt"
BESIDE = ("tokenizer.json", "20B_tokenizer.json", WORLD_FILE)
N_VOCAB_20B = 50277  # Pile and Raven
N_VOCAB_WORLD = 65536  # 65530, padded
# Models of one family share a vocabulary: any of these repositories in the hub cache has it.
IN_HUB_CACHE = {
    N_VOCAB_20B: ("tokenizer.json", ("EleutherAI/gpt-neox-20b", "RWKV/rwkv-raven-1b5", "RWKV/rwkv-4-169m-pile")),
    N_VOCAB_WORLD: (WORLD_FILE, tuple(f"RWKV/rwkv-4-world-{size}" for size in ("169m", "430m", "1b5", "3b", "7b"))),
}
EMBEDDED = Path(__file__).parents[1] / "assets"  # folders of models, by their names
KINDS = (
    f"a vocabulary of {N_VOCAB_20B} needs 20B_tokenizer.json, {N_VOCAB_WORLD} needs {WORLD_FILE} (pip install rwkv has"
    " it), that of tales is called tales, 256 needs no file"
)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file: a World vocabulary if it ends in `.txt`, else the format of the `tokenizers` library.

    The name of an embedded model, `tales`, stands for its file.

    Raises:
        TokenizerError: the file cannot be read or is neither.
    """
    if not os.path.exists(path):
        embedded = EMBEDDED / Path(path).name / "tokenizer.json"
        if Path(path).name == str(path) and embedded.is_file():
            return BpeTokenizer(embedded)
        expected = f"the path of a tokenizer.json or of {WORLD_FILE}, or tales"
        raise TokenizerError(f"{path}: no such file; expected {expected}")
    return WorldTokenizer(path) if Path(path).suffix.lower() == ".txt" else BpeTokenizer(path)


def find_tokenizer(model: Path, n_vocab: int) -> Tokenizer | None:
    """The first tokenizer that fits a model: from its folder, the hub cache or an installed `rwkv` package.

    Args:
        model: the checkpoint's file or directory.
        n_vocab: the size of the model's vocabulary; 256 without a file means bytes.

    Returns:
        The tokenizer, None if none is found.

    Raises:
        TokenizerError: tokenizers were found, but none of them fits; with the reason of the first one.
    """
    reason = None
    for path in _candidates(model if model.is_dir() else model.parent, n_vocab):
        try:
            tokenizer = load_tokenizer(path)
            check_fits(tokenizer, n_vocab)
            return tokenizer
        except TokenizerError as error:
            reason = reason or error
    if n_vocab == ByteTokenizer.N_VOCAB:
        return ByteTokenizer()
    if reason:
        raise reason
    return None


def tokenizer_for(path: Path, n_vocab: int, given: str | Path | None) -> Tokenizer | TokenizerError:
    """The given tokenizer, which must fit; else one that is found, else the reason why there is none."""
    if given:
        tokenizer = load_tokenizer(given)
        check_fits(tokenizer, n_vocab)
        return tokenizer
    advice = "give one: RWKV.from_pretrained(..., tokenizer='FILE'), or --tokenizer FILE on the command line"
    try:
        found = find_tokenizer(path, n_vocab)
        if found is not None:
            return found
        looked = "no tokenizer next to the model or in the hub cache"
        return TokenizerError(f"{path}: {looked} fits its vocabulary of {n_vocab} ({KINDS}); {advice}")
    except TokenizerError as error:
        return TokenizerError(f"{error}; {advice}")


def find_world(folder: Path) -> Path | None:
    """The file of the World vocabulary, in a model's folder, in the hub cache or in an installed `rwkv` package."""
    return next((path for path in _candidates(folder, N_VOCAB_WORLD) if path.name == WORLD_FILE), None)


def _candidates(folder: Path, n_vocab: int) -> Iterator[Path]:
    yield from (folder / name for name in BESIDE if (folder / name).is_file())
    name, repositories = IN_HUB_CACHE.get(n_vocab, ("", ()))
    for repository in repositories:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            yield Path(cached)
    if n_vocab == N_VOCAB_WORLD:
        yield from (path for path in _in_rwkv_package() if path.is_file())


def _in_rwkv_package() -> list[Path]:
    try:
        spec = importlib.util.find_spec("rwkv")  # does not import it: importing that package has side effects
    except ValueError:  # a module of this name was made at run time
        spec = None
    return [Path(folder) / WORLD_FILE for folder in (spec and spec.submodule_search_locations) or ()]


def check_fits(tokenizer: Tokenizer, n_vocab: int) -> None:
    """Refuses a tokenizer with ids that the model does not have, and one that is too small to be the model's own.

    Raises:
        TokenizerError: with both sizes.
    """
    most = padded(tokenizer.n_vocab)
    if not tokenizer.n_vocab <= n_vocab <= most:
        raise TokenizerError(
            f"{tokenizer.name}: has {tokenizer.n_vocab} tokens, the model's vocabulary is {n_vocab}, expected"
            f" {tokenizer.n_vocab} to {most}; it belongs to another model: {KINDS}"
        )


def end_as_trained(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A prompt's ids, with a blank line at its end encoded as in the training texts of Pile and Raven models.

    The 20B vocabulary has a token for two newlines, but these models were trained on texts with two tokens of one
    newline each, and they continue those better.
    """
    if tokenizer.n_vocab == N_VOCAB_20B and tokenizer.token_bytes(ids[-1]) == b"\n\n":
        return [*ids[:-1], *tokenizer.encode("\n"), *tokenizer.encode("\n")]
    return ids
