"""`AutoTokenizer`: finds the tokenizer of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkv_engine.auto.config import MadeByName
from rwkv_engine.auto.rwkv_tokenizer import SPECIAL, RwkvTokenizer
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.errors import CheckpointError, RequestError, TokenizerError
from rwkv_engine.pipeline import locate
from rwkv_engine.storage.json_object import read_json
from rwkv_engine.text import Tokenizer, find_tokenizer, load_tokenizer
from rwkv_engine.text.find import BESIDE, KINDS

# Files say "no limit" by a number of 30 digits.
MOST_TOKENS = 10**9


class AutoTokenizer(MadeByName):
    """Finds tokenizers; `from_pretrained` returns a `RwkvTokenizer`."""

    @staticmethod
    def from_pretrained(
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        model_max_length: int | None = None,
        use_fast: bool = True,
        trust_remote_code: bool = False,
        **special: str | None,
    ) -> RwkvTokenizer:
        """Loads the tokenizer of a model, with the settings of its tokenizer_config.json.

        Args:
            name_or_path: a model, as for `RWKV.from_pretrained`, or a tokenizer file. The weights of a hub id are
                downloaded only if nothing else tells which tokenizer the model needs.
            revision, token: of a hub id: branch, tag or commit; for a private or gated repository.
            local_files_only: take a hub id from the hub cache without asking the server.
            padding_side, truncation_side: "right" or "left"; by default that of the file, or else "right".
            model_max_length: the `max_length` of calls that give none.
            use_fast, trust_remote_code: have no effect; code from a repository is never run.
            **special: `bos_token`, `eos_token`, `unk_token`, `pad_token`.

        Raises:
            CheckpointError: the model does not exist, or cannot be downloaded.
            TokenizerError: the model has no tokenizer, or the tokenizer does not fit it or lacks a special token.
            RequestError: an argument is unknown, or a value is out of range.
        """
        if unknown := sorted(special.keys() - set(SPECIAL)):
            raise RequestError(f"AutoTokenizer.from_pretrained: got {unknown[0]}=, expected {', '.join(SPECIAL)}, ...")
        path = locate(name_or_path, revision, token, local_files_only, weights=False)
        tokenizer = _tokenizer(path, lambda: locate(name_or_path, revision, token, local_files_only))
        folder = path if path.is_dir() else path.parent
        said = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
        named = {name: _name(said.get(name)) for name in SPECIAL} | special
        limit = said.get("model_max_length")
        if model_max_length is None and isinstance(limit, int) and limit < MOST_TOKENS:
            model_max_length = limit
        return RwkvTokenizer(
            tokenizer,
            {name: text for name, text in named.items() if text is not None},
            padding_side or said.get("padding_side", "right"),
            truncation_side or said.get("truncation_side", "right"),
            model_max_length,
        )


def _tokenizer(path: Path, with_weights: Callable[[], Path]) -> Tokenizer:
    """The tokenizer at a path, or that of the model there; `with_weights` gets the weights if they are needed."""
    if path.is_file() and path.suffix in (".json", ".txt"):
        return load_tokenizer(path)
    n_vocab = _n_vocab(path)
    if n_vocab is None:
        for name in BESIDE:
            if (path / name).is_file():
                return load_tokenizer(path / name)
        path = with_weights()
        n_vocab = Checkpoint.open(path).config.n_vocab
    found = find_tokenizer(path, n_vocab)
    if found is None:
        raise TokenizerError(
            f"{path}: no tokenizer next to the model or in the hub cache fits its vocabulary of {n_vocab} ({KINDS});"
            " name its file: AutoTokenizer.from_pretrained('FILE')"
        )
    return found


def _n_vocab(path: Path) -> int | None:
    """The size of the vocabulary of the model at a path; None if nothing there tells it."""
    said = _read(path / "config.json").get("vocab_size")
    if isinstance(said, int):
        return said
    try:
        return Checkpoint.open(path).config.n_vocab
    except CheckpointError:
        return None


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file of settings; empty if there is no such file.

    Raises:
        TokenizerError: the file is damaged.
    """
    return read_json(path, missing_ok=True, error=TokenizerError)


def _name(said: Any) -> str | None:
    """The token in an entry of a settings file: a string, or an object with the string as its `content`."""
    content = said.get("content") if isinstance(said, dict) else said
    return content if isinstance(content, str) else None
