"""Writes a Hugging Face directory, completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_engine.checkpoints.safetensors import write_shards
from rwkv_engine.convert.other_programs import class_limit, class_settings
from rwkv_engine.core import ModelConfig
from rwkv_engine.core.config import TensorSpec
from rwkv_engine.core.dtypes import word_of
from rwkv_engine.errors import CheckpointError
from rwkv_engine.notices import log
from rwkv_engine.storage.atomic import replace_directory_atomically

SHARD_SIZE = 5_000_000_000
# Names of weights files in any format. Old ones are removed, because they could be mistaken for those of the new model.
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


def save_hugging_face(
    output: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    dtypes: torch.dtype | Mapping[str, torch.dtype] | None = None,
    *,
    shard_size: int = SHARD_SIZE,
    settings: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    files: Mapping[str, str | Path] | None = None,
    replaced: Iterable[str] = (),
) -> tuple[str, ...]:
    """Writes `config.json`, `generation_config.json` and the weights; holds one tensor at a time.

    An existing directory is replaced in one step, and stays as it was if there is an error. Its files that are not part
    of a model are kept. A notice is logged if the class that config.json names cannot run the model.

    Args:
        output: the directory.
        config: the model's sizes.
        tensors: all tensors of the model with their original names, in any order; vectors are (C,) or (1, 1, C).
        dtypes: one dtype for all tensors, or one for each by its name. A file's header contains them, so without this
            argument all tensors are first collected in memory.
        shard_size: bytes of tensors in one file; a larger model is written to several files with an index.
        settings: entries of config.json, in addition to or in place of those that follow from `config`.
        generation: the content of generation_config.json; by default the ids in config.json that begin and end a text.
        files: further files by their names: the text, or the path of a file to be copied.
        replaced: names of files that are removed from the old directory even if no new file has their name.

    Returns:
        The names of all files that belong to the model.

    Raises:
        CheckpointError: `output` is not a directory, cannot be replaced, or cannot be written.
        ValueError: the tensors are not those of the model, or do not have the announced dtypes.
    """
    check_directory(output)
    expected = config.tensors()
    if dtypes is None:
        tensors = list(tensors)
        dtypes = {name: tensor.dtype for name, tensor in tensors}
    typed = dict.fromkeys(expected, dtypes) if isinstance(dtypes, torch.dtype) else dtypes
    rename = config.to_hugging_face
    shapes = {rename(name): (typed[name], config.hugging_face_shape(name, spec)) for name, spec in expected.items()}
    written = _settings(config, typed["head.weight"]) | dict(settings or {})
    if generation is None:
        generation = {name: written[name] for name in ("bos_token_id", "eos_token_id")}
    gone = set(replaced)
    try:
        with replace_directory_atomically(output, lambda name: name in gone or bool(_WEIGHTS.fullmatch(name))) as new:
            renamed = ((rename(name), _hugging_face(config, name, expected[name], tensor)) for name, tensor in tensors)
            write_shards(new, shapes, shard_size, renamed)
            for name, content in {
                "config.json": _json(written),
                "generation_config.json": _json(generation),
                **(files or {}),
            }.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, new / name)
                else:
                    (new / name).write_text(content, encoding="utf-8")
            names = {path.name for path in new.iterdir()}
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written: {error.strerror or error}") from error
    if limit := class_limit(config):
        log.warning(f"{output}: {limit}; rwkv_engine runs it")
    return tuple(sorted(names | ({"README.md"} if (output / "README.md").is_file() else set())))


def check_directory(output: Path) -> None:
    """Refuses a path that cannot be replaced by a directory.

    Raises:
        CheckpointError: it is a file, a mounted file system, the working directory or one of its parents.
    """
    try:
        path = output.resolve()
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{output}: is not a directory; nothing was written")
        problem = "is a mounted file system" if os.path.ismount(path) else None
        if path in (here := Path.cwd().resolve(), *here.parents):
            problem = "is the working directory or above it"
    except OSError as error:
        known = errno.errorcode.get(error.errno or 0)
        raise CheckpointError(f"{output}: cannot be written: {error.strerror or known}") from error
    if problem:
        raise CheckpointError(f"{output}: {problem} and cannot be replaced in one step; choose a directory inside it")


def _hugging_face(config: ModelConfig, name: str, spec: TensorSpec, tensor: Tensor) -> Tensor:
    """A tensor as files with Hugging Face names have it, given as files with original names have it."""
    tensor = tensor.reshape(spec.shape)
    return (tensor.t() if config.transposes(name) else tensor).reshape(config.hugging_face_shape(name, spec))


def _settings(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    word = word_of(dtype)
    return {
        **class_settings(config),
        **config.settings(),
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": word,
        "torch_dtype": word,  # its name in transformers before 4.56
    }


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
