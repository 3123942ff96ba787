"""Reads and writes `.pth` files (also named `.pt`, `.ckpt` or `.bin`), which `torch.save` writes for a state dict.

Such a file is a zip archive of uncompressed members in one folder: `data.pkl`, a pickle with the dtype, shape and
storage number of each tensor; the storages `data/0`, `data/1`, ...; `byteorder`; and `version`. Before torch 1.6 it
was a single pickle. Reading never runs code from the file. `write_pth` replaces `torch.save`, which needs all tensors
in memory at once, or writes wrong checksums (`torch.serialization.skip_data`).
"""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from rwkv_engine.checkpoints.contents import Contents, StoredTensor, shown
from rwkv_engine.checkpoints.safetensors import Shapes, raw_bytes
from rwkv_engine.errors import CheckpointError
from rwkv_engine.storage.atomic import replace_atomically

# Keys under which trainers store the model's state dict, next to that of the optimizer.
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")
_DEEPEST = 4  # levels of nested dictionaries


def read_pth(path: Path) -> Contents:
    """The state dict in a file, possibly inside a trainer's dictionary; memory-mapped where the format allows.

    Raises:
        CheckpointError: the file contains objects other than tensors and plain values, has no state dict, or is
            truncated.
        Exception: of any class, if the file is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except Exception as error:
        if refused := re.search(r"unsupported (?:global: )?GLOBAL (\S+)", str(error), re.IGNORECASE):
            raise CheckpointError(
                f"{path}: holds more than tensors ({shown(refused[1])}), and loading it would run code from it;"
                " refused. Ask its author for a file with the state dict alone"
            ) from error
        if isinstance(error, EOFError) or "unexpected EOF" in str(error):
            raise CheckpointError(f"{path}: is cut off: its last part is missing; download or copy it again") from error
        raise
    return Contents({n: StoredTensor(tuple(t.shape), partial(_same, t)) for n, t in _state_dict(path, content).items()})


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    for _ in range(_DEEPEST):
        if not isinstance(content, dict) or not content:
            raise CheckpointError(f"{path}: expected a dictionary of tensors, got {_kind(content)}")
        if isinstance(strategy := content.get("_strategy"), str):
            raise CheckpointError(
                f"{path}: converted by the rwkv package for the strategy {shown(repr(strategy))}, its matrices changed"
                " for that package alone; give the file it was made from, which every strategy loads"
            )
        inner = next((content[key] for key in _STATE_DICTS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            way_out = f"; if the weights are in it, save torch.load(FILE)[{shown(repr(name))}] alone"
            raise CheckpointError(
                f"{path}: expected a dictionary of tensors, found {shown(name)}: {_kind(tensor)}"
                + (way_out if isinstance(tensor, dict) else "")
            )
    return dict(content)


def _kind(value: object) -> str:
    return "an empty dictionary" if value == {} else type(value).__name__


def _can_be_mapped(path: Path) -> bool:
    """Whether a file can be memory-mapped: it is a zip archive (the legacy format is one pickle) and not compressed."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _same(tensor: Tensor) -> Tensor:
    return tensor


_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}
_ALIGNMENT = 64  # bytes, of storages, which are memory-mapped; torch's own files use the same
_ZIP_HEADER = 30 + 20  # bytes of a member's header: the fixed part, and the sizes in 64 bits


class _Storage(NamedTuple):
    """A placeholder for the content of the member `data/KEY`."""

    key: str
    dtype: torch.dtype
    size: int


class _Announced:
    """An object that is pickled like a contiguous tensor."""

    def __init__(self, key: str, dtype: torch.dtype, shape: tuple[int, ...]):
        self.storage, self.shape = _Storage(key, dtype, torch.Size(shape).numel()), shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = torch.empty(self.shape, dtype=self.storage.dtype, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, self.shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple[Any, ...] | None:
        if isinstance(obj, _Storage):
            return "storage", _STORAGES[obj.dtype], obj.key, "cpu", obj.size
        return None


def write_pth(path: Path, shapes: Shapes, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes a file that `torch.load` reads and maps, completely or not at all, holding one tensor at a time.

    Args:
        path: the file; an existing one is replaced, and stays as it was if there is an error.
        shapes: dtype (a floating-point one) and shape of every tensor by its name.
        tensors: the tensors with their names, in the order of `shapes`.

    Raises:
        CheckpointError: the file cannot be written.
    """
    announced = {name: _Announced(str(key), *entry) for key, (name, entry) in enumerate(shapes.items())}
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(announced)
    try:
        with replace_atomically(path) as temporary, open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                _add(archive, file, "data.pkl", pickled.getvalue())
                _add(archive, file, "byteorder", sys.byteorder.encode())
                expected = iter(announced.items())
                for name, tensor in tensors:
                    other, its = next(expected, ("", None))
                    if its is None or (name, tensor.dtype, tuple(tensor.shape)) != (
                        other,
                        its.storage.dtype,
                        its.shape,
                    ):
                        raise ValueError(f"{name}: not the tensor that was announced")
                    _add(archive, file, f"data/{its.storage.key}", raw_bytes(tensor.contiguous()))
                    del tensor  # before the next one is made
                if next(expected, None):
                    raise ValueError("announced tensors were not given")
                _add(archive, file, "version", b"3\n")
            file.flush()
            os.fsync(file.fileno())  # some file systems report only here that they are full
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: bytes | memoryview) -> None:
    """Adds a member without a date, whose content begins at a multiple of `_ALIGNMENT`."""
    info = zipfile.ZipInfo(f"model/{name}")
    begin = file.tell() + _ZIP_HEADER + len(info.filename) + 4
    gap = -begin % _ALIGNMENT
    info.extra = b"FB" + gap.to_bytes(2, "little") + bytes(gap)  # an extra field, as in torch's own files
    with archive.open(info, "w", force_zip64=True) as member:
        member.write(content)
    info.extra = b""  # left out of the table of contents
