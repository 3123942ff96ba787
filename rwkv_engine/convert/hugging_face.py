"""Converts any checkpoint to a Hugging Face directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from rwkv_engine.checkpoints.memory import conversion_memory_reported
from rwkv_engine.convert.card import MARK, model_card
from rwkv_engine.convert.directory import SHARD_SIZE, check_directory, save_hugging_face
from rwkv_engine.convert.source import Converted, Source
from rwkv_engine.convert.tokenizer_files import FILES, chosen_tokenizer, tokenizer_files
from rwkv_engine.progress import Progress
from rwkv_engine.storage.json_object import read_json

# Entries of the source's config.json that do not follow from the tensors.
_TAKEN_OVER = ("context_length", "bos_token_id", "eos_token_id")


def to_hugging_face(
    model: str | Path,
    output: str | Path,
    *,
    shard_size: int = SHARD_SIZE,
    tokenizer: str | Path | None = None,
    is_chat: bool = False,
    progress: Progress | None = None,
    dtype: torch.dtype | None = None,
    undo_rescale: bool | None = None,
    size: str | None = None,
) -> Converted:
    """Writes a directory that transformers can load, completely or not at all; holds one tensor at a time.

    Tensors are renamed but not changed, unless an argument says so. A README.md that this function did not write is
    kept.

    Args:
        model: path of a checkpoint, see `Checkpoint`. If its file name holds the context length it was trained with, as
            in `ctx4096`, that goes into config.json.
        output: the directory; see `save_hugging_face`.
        shard_size: bytes of tensors in one file; a larger model is written to several files with an index.
        tokenizer: path of a tokenizer file; by default one is searched for, see `text.find_tokenizer`.
        is_chat: whether the model card describes a chat format.
        progress: called after each tensor with the parameters written so far and in all.
        dtype: the new dtype of all tensors except time_decay and time_first; by default each tensor keeps its own.
        undo_rescale: True multiplies weights back, exactly, that transformers divided before saving; None refuses a
            model whose weights look divided; False converts it as it is.
        size: one of `SIZES`; a model of another size is refused.

    Returns:
        The size, dtype, tokenizer and files of what was written.

    Raises:
        CheckpointError: the model is damaged, of another size, holds NaN, infinity or numbers too large for `dtype`, or
            its weights look divided; or the directory cannot be written.
        OutOfMemoryError: a tensor does not fit into memory.
        TokenizerError: the tokenizer cannot be read or does not fit the model.
    """
    model, output = Path(model), Path(output)
    check_directory(output)
    source = Source(model, dtype, undo_rescale, size)
    config = source.checkpoint.config
    found, why = chosen_tokenizer(model, config.n_vocab, Path(tokenizer) if tokenizer else None)
    files = tokenizer_files(found) if found else {}
    if _card_is_ours(output / "README.md"):
        files["README.md"] = model_card(output.resolve().name, model, config, source.dtype, is_chat)
    own = _json_of(model, "config.json")
    settings = {name: own[name] for name in _TAKEN_OVER if own.get(name) is not None}
    if told := re.search(r"ctx(\d{3,6})(?!\d)", model.name):
        settings.setdefault("context_length", int(told[1]))
    with conversion_memory_reported(model):
        names = save_hugging_face(
            output,
            config,
            source.tensors(progress),
            {name: kind for name, (kind, _) in source.shapes.items()},
            shard_size=shard_size,
            settings=settings,
            generation=_json_of(model, "generation_config.json") or None,
            files=files,
            replaced=FILES,
        )
    return source.converted(why, names)


def _json_of(model: Path, name: str) -> dict[str, Any]:
    """A settings file of the directory that is converted; empty if there is none."""
    return read_json(model / name, missing_ok=True) if model.is_dir() else {}


def _card_is_ours(path: Path) -> bool:
    """Whether the model card may be replaced: there is none, or an earlier conversion wrote it."""
    if path.exists() and not path.is_file():
        return False
    try:
        return MARK in path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
