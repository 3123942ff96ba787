"""Tensor files and Hugging Face directories: what is in them, under which name, of which shape.

Nothing in a file is ever executed: pickles are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rwkv_engine.errors import CheckpointError


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk; `read` returns it, as a view of the mapped file where the format allows.

    A packed file has it in a `form` of its own, in which `read_arranged` returns it, and quantised with the scales that
    `read_scales` returns, see `packed`.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    form: str | None = None
    read_arranged: Callable[[], Tensor] | None = None
    read_scales: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Contents:
    """What is in a file or a directory: tensors by their names there, and what comes with them.

    Attributes:
        tensors: no weights are read yet.
        settings: of a directory's config.json.
        metadata: of a safetensors file.
    """

    tensors: dict[str, StoredTensor]
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Turns whatever a parser of a foreign format throws into a CheckpointError.

    The parsers (zip, pickle, safetensors, json) raise almost anything on damaged input, hence every `Exception`.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint ({_first_line(error)}); download or export it again"
        ) from error


def _first_line(error: Exception) -> str:
    # torch begins with the advice to load without `weights_only`, which is the last thing to do here
    lines = [line for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


def shown(name: object) -> str:
    """A name out of a file, which may be anything, for a message of one line."""
    text = str(name)[:100]
    return text if text.isprintable() else repr(text)


def some(names: Iterable[str]) -> str:
    """The first three names, for a message."""
    listed = sorted(names)
    return ", ".join(map(shown, listed[:3])) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def read_file(path: Path) -> Contents:
    """What is in a `.safetensors`, or in a `.pth` or `.bin`.

    Raises:
        CheckpointError: damaged, or not such a file.
    """
    with damage_reported(path):
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)


def read_directory(path: Path) -> Contents:
    """What is in a Hugging Face directory, or in the one file of a plain one.

    Raises:
        CheckpointError: files are missing or damaged, two of them hold one tensor, or they disagree with their index.
    """
    with damage_reported(path):
        settings, files = _files_of(path)
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for file, listed in files.items():
        contents = read_file(file)
        part = contents.tensors
        if twice := part.keys() & tensors.keys():
            raise CheckpointError(f"{path}: {some(twice)} in two files; download it again")
        if listed is not None and (wrong := part.keys() ^ listed):
            raise CheckpointError(
                f"{path}: {file.name} and the index disagree about {some(wrong)}; they do not belong together,"
                " download both again"
            )
        tensors |= part
        metadata |= contents.metadata
    return Contents(tensors, settings, metadata)


def stored_bytes(path: Path) -> int:
    """Size of a checkpoint's files with tensors.

    Raises:
        CheckpointError: there are none, or they cannot be found.
    """
    with damage_reported(path):
        files = _files_of(path)[1] if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)


def _read_safetensors(path: Path) -> Contents:
    file = safe_open(path, framework="pt")  # stays open: tensors read later are views of this mapping
    tensors = {
        name: StoredTensor(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
        for name in file.keys()  # noqa: SIM118 - it is no mapping
    }
    return Contents(tensors, metadata=file.metadata() or {})


def _read_pth(path: Path) -> Contents:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except Exception as error:
        if refused := re.search(r"unsupported (?:global: )?GLOBAL (\S+)", str(error), re.IGNORECASE):
            raise CheckpointError(
                f"{path}: holds more than tensors ({refused[1]}), and loading it would run code from it; refused."
                " Ask its author for a file with the state dict alone"
            ) from error
        raise
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    if isinstance(strategy := content.get("_strategy"), str):
        raise CheckpointError(
            f"{path}: converted by the rwkv package for the strategy {shown(repr(strategy))}, its matrices changed for"
            " that package alone; give the file it was made from, which every strategy loads"
        )
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: expected a dictionary of tensors, found {shown(name)}: {type(tensor).__name__}"
            )
    return Contents({name: StoredTensor(tuple(t.shape), partial(_same, t)) for name, t in content.items()})


def _can_be_mapped(path: Path) -> bool:
    """The legacy format is one pickle; and a zip someone has compressed again holds no tensor as it is in memory."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _files_of(path: Path) -> tuple[dict[str, Any], dict[Path, set[str] | None]]:
    """Settings and tensor files of a Hugging Face directory, or the one raw file of a plain one.

    With each file the names of its tensors, where an index tells them.
    """
    config = path / "config.json"
    settings = _read_json(config) if config.is_file() else {}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return settings, {path / name: None}
        index = path / f"{name}.index.json"
        if index.is_file():
            return settings, {**_shards(index)}
    raw = sorted(p for p in path.iterdir() if p.suffix in (".pth", ".safetensors"))
    if len(raw) == 1:
        return settings, {raw[0]: None}
    found = ", ".join(p.name for p in raw) or "neither of them, and no .pth or .safetensors file"
    raise CheckpointError(
        f"{path}: expected model.safetensors or pytorch_model.bin (or its .index.json), found {found};"
        " name the file itself"
    )


def _shards(index: Path) -> dict[Path, set[str]]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: expected a 'weight_map' from tensor names to file names")
    shards: dict[Path, set[str]] = {}
    for tensor, name in weight_map.items():
        shards.setdefault(index.parent / name, set()).add(tensor)
    for file in shards:
        if file.parent != index.parent or not file.is_file():
            raise CheckpointError(f"{index}: the shard {shown(file.name)!r} is not in the directory; download it again")
    return dict(sorted(shards.items()))


def _read_json(path: Path) -> dict[str, Any]:
    with damage_reported(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
