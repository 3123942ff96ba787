"""The raw `.pth`: what `torch.save` makes of a dictionary of tensors, written one tensor at a time.

It is a zip archive whose members are stored as they are, in one folder: `data.pkl`, a pickle that tells of each tensor
its type, its shape and the number of its storage; the storages `data/0`, `data/1`, ...; `byteorder`; and `version`.
`torch.save` itself wants all tensors in memory at once, or leaves wrong checksums (`torch.serialization.skip_data`).
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from rwkv_engine.checkpoints.safetensors_header import raw_bytes
from rwkv_engine.checkpoints.shards import Shapes
from rwkv_engine.errors import CheckpointError
from rwkv_engine.storage.atomic import replace_atomically

_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}
_ALIGNMENT = 64  # of storages, as in torch's own files: they are mapped
_ZIP_HEADER = 30 + 20  # of a member: its fixed part, and its sizes in 64 bits


class _Storage(NamedTuple):
    """Stands for what `data/KEY` will hold."""

    key: str
    dtype: torch.dtype
    size: int


class _Announced:
    """Pickles as a contiguous tensor does."""

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
    """Writes a file that `torch.load` reads and maps, whole or not at all, holding one tensor at a time.

    Args:
        path: of the file; one that is there is replaced, and stays as it was if anything goes wrong.
        shapes: dtype and shape of every tensor by its name, floating-point ones.
        tensors: the tensors with their names, in that order.

    Raises:
        CheckpointError: it cannot be written there.
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
                        raise ValueError(f"{name}: not the tensor announced")
                    _add(archive, file, f"data/{its.storage.key}", raw_bytes(tensor.contiguous()))
                    del tensor  # before the next one is made
                if next(expected, None):
                    raise ValueError("tensors were announced that did not come")
                _add(archive, file, "version", b"3\n")
            file.flush()
            os.fsync(file.fileno())  # some file systems tell only here that they are full
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: bytes | memoryview) -> None:
    """A member whose content begins at a multiple of `_ALIGNMENT`, and which has no date."""
    info = zipfile.ZipInfo(f"model/{name}")
    begin = file.tell() + _ZIP_HEADER + len(info.filename) + 4
    gap = -begin % _ALIGNMENT
    info.extra = b"FB" + gap.to_bytes(2, "little") + bytes(gap)  # a field of its own kind, as torch's files have
    with archive.open(info, "w", force_zip64=True) as member:
        member.write(content)
    info.extra = b""  # not once more in the table of contents
