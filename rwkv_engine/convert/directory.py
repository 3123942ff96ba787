"""A Hugging Face directory, written whole or not at all."""

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
from rwkv_engine.core import ModelConfig
from rwkv_engine.core.dtypes import word_of
from rwkv_engine.errors import CheckpointError
from rwkv_engine.notices import log
from rwkv_engine.storage.atomic import replace_directory_atomically

SHARD_SIZE = 5_000_000_000
# Weights of any kind: left where they are, they could be taken for those of the new model.
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

    An existing directory is replaced in one step, and stays as it was if anything goes wrong. Its files that are not
    part of a model are kept. A notice says if transformers' own class cannot run the model.

    Args:
        output: the directory.
        config: the model's numbers.
        tensors: all of the model with their original names, in any order; vectors (C,) or (1, 1, C).
        dtypes: of the tensors, or of each by its name, for they come first in a file; without, all tensors are held.
        shard_size: more bytes of tensors than this make several files with an index.
        settings: of config.json, besides or in place of what the model's numbers say.
        generation: of generation_config.json; by default the ids of config.json that begin and end a text.
        files: more files by their names: what is in them, or the path of one to be copied.
        replaced: names of files in the old directory that vanish even if nothing new has their name.

    Returns:
        The names of all files that belong to the model.

    Raises:
        CheckpointError: `output` is no directory or cannot be replaced, or nothing can be written there.
        ValueError: the tensors are not those of the model, or not of the dtypes announced.
    """
    check_directory(output)
    if config.n_att != config.n_embd:
        log.warning(
            f"{output}: time mixing is {config.n_att} wide and the model {config.n_embd}, so the RwkvForCausalLM of"
            " transformers fails on it as soon as it uses a state, as generate does; rwkv_engine runs it"
        )
    expected = config.tensors()
    if dtypes is None:
        tensors = list(tensors)
        dtypes = {name: tensor.dtype for name, tensor in tensors}
    typed = dict.fromkeys(expected, dtypes) if isinstance(dtypes, torch.dtype) else dtypes
    rename = config.to_hugging_face
    shapes = {rename(name): (typed[name], spec.file_shape) for name, spec in expected.items()}
    written = _settings(config, typed["head.weight"]) | dict(settings or {})
    if generation is None:
        generation = {name: written[name] for name in ("bos_token_id", "eos_token_id")}
    gone = set(replaced)
    try:
        with replace_directory_atomically(output, lambda name: name in gone or bool(_WEIGHTS.fullmatch(name))) as new:
            renamed = ((rename(name), tensor.reshape(expected[name].file_shape)) for name, tensor in tensors)
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
    return tuple(sorted(names | ({"README.md"} if (output / "README.md").is_file() else set())))


def check_directory(output: Path) -> None:
    """Refuses what no directory can be put in the place of.

    Raises:
        CheckpointError: it is a file, a mounted file system, or the working directory or above it.
    """
    try:
        path = output.resolve()
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{output}: is no directory; nothing was written")
        problem = "has a file system of its own" if os.path.ismount(path) else None
        if path in (here := Path.cwd().resolve(), *here.parents):
            problem = "is the working directory or above it"
    except OSError as error:
        known = errno.errorcode.get(error.errno or 0)
        raise CheckpointError(f"{output}: cannot be written: {error.strerror or known}") from error
    if problem:
        raise CheckpointError(f"{output}: {problem} and cannot be replaced in one step; name a directory inside it")


def _settings(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    word = word_of(dtype)
    return {
        "architectures": ["RwkvForCausalLM"],
        **config.settings(),
        "context_length": 1024,
        "bos_token_id": 0,
        "eos_token_id": 0,
        # Halving the residual stream every few layers, as transformers does by default, rounds nothing in float32, but
        # moves the epsilon of every LayerNorm behind it; and it divides weights in place, see `core.rescaled`.
        "rescale_every": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": word,
        "torch_dtype": word,  # its name in transformers before 4.56
    }


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
