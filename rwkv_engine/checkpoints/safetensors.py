"""Reads safetensors files lazily, and writes them one tensor at a time, to one file or to several with an index.

A file consists of the header's length (8 bytes, little-endian), the header (JSON, padded with spaces), and the tensors'
bytes without gaps. The `safetensors` library reads such files; it can write them only if all tensors are in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rwkv_engine.checkpoints.contents import Contents, StoredTensor
from rwkv_engine.errors import CheckpointError

STEM, SUFFIX = "model", ".safetensors"
INDEX = f"{STEM}{SUFFIX}.index.json"
Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_LONGEST = 100_000_000  # bytes of a header, the format's own limit
_NAMES = {  # the dtypes' names in the header
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def read_safetensors(path: Path) -> Contents:
    """The tensors of a file, as views of its mapping.

    Raises:
        CheckpointError: the file is truncated.
        Exception: of any class, if the file is damaged.
    """
    try:
        file = safe_open(path, framework="pt")  # stays open: tensors read later are views of this mapping
    except SafetensorError as error:
        if _is_cut_off(path):
            raise CheckpointError(f"{path}: is cut off: its last part is missing; download or copy it again") from error
        raise
    tensors = {
        name: StoredTensor(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
        for name in file.keys()  # noqa: SIM118 - the file is not a mapping
    }
    return Contents(tensors, metadata=file.metadata() or {})


def _is_cut_off(path: Path) -> bool:
    """Whether a file is shorter than its header says; False if the header cannot be read."""
    size = path.stat().st_size
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError), open(path, "rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        if not begin <= size:
            return begin <= _LONGEST and file.read(1) == b"{"
        header = json.loads(file.read(begin - 8))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(begin + max(ends) > size)
    return False


class Header:
    """The header of a file, tensor by tensor in the order of their bytes.

    Attributes:
        end: bytes of all tensors so far.
    """

    def __init__(self, metadata: Mapping[str, str]):
        self._entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        self.end = 0

    def add(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """Appends a tensor."""
        begin = self.end
        self.end += _nbytes(dtype, shape)
        self._entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, self.end]}

    def encoded(self, alignment: int) -> bytes:
        """The bytes before the first tensor; their number is a multiple of `alignment`."""
        text = json.dumps(self._entries).encode()
        text += b" " * (-(8 + len(text)) % alignment)
        return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, to be written to a file."""
    return tensor.view(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class Shard:
    """One file to be written.

    Attributes:
        name: the file's name.
        head: its bytes before the first tensor.
        begins: the position in the file of each tensor's bytes.
    """

    name: str
    head: bytes
    begins: dict[str, int]


def plan_shards(shapes: Shapes, size: int) -> list[Shard]:
    """Assigns tensors to files in their order; a new file begins where the next tensor would make one exceed `size`.

    A tensor larger than `size` bytes gets a file of its own. Within a file wide dtypes come first, so that every tensor
    lies at a multiple of its dtype's size; some readers rely on that although the format does not promise it.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in shapes.items():
        own = _nbytes(dtype, shape)
        if groups[-1] and filled + own > size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += own
    return [_shard(i, len(groups), group, shapes) for i, group in enumerate(groups, 1)]


def _shard(number: int, of: int, names: list[str], shapes: Shapes) -> Shard:
    header = Header({"format": "pt"})
    begins = {}
    for name in sorted(names, key=lambda name: -shapes[name][0].itemsize):
        begins[name] = header.end
        header.add(name, *shapes[name])
    head = header.encoded(8)
    file = f"{STEM}{SUFFIX}" if of == 1 else f"{STEM}-{number:05}-of-{of:05}{SUFFIX}"
    return Shard(file, head, {name: len(head) + begin for name, begin in begins.items()})


def write_shards(folder: Path, shapes: Shapes, size: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes the files, and an index if there are several; holds one tensor at a time.

    Args:
        folder: an empty directory.
        shapes: dtype and shape of every tensor.
        size: bytes of tensors in a file, see `plan_shards`.
        tensors: all of them with their names, in any order.

    Raises:
        ValueError: the tensors are not those in `shapes`.
        OSError: the files cannot be written.
    """
    shards = plan_shards(shapes, size)
    places = {name: (folder / shard.name, begin) for shard in shards for name, begin in shard.begins.items()}
    for shard in shards:
        (folder / shard.name).write_bytes(shard.head)
    missing = set(shapes)
    for name, tensor in tensors:
        if name not in missing or shapes[name] != (tensor.dtype, tuple(tensor.shape)):
            raise ValueError(f"{name}: given twice, or not of the dtype and shape announced")
        missing.remove(name)
        path, begin = places[name]
        with open(path, "r+b") as file:  # opened one by one: there may be more files than may be open together
            file.seek(begin)
            file.write(raw_bytes(tensor.contiguous()))
        del tensor  # before the next one is made
    if missing:
        raise ValueError(f"announced tensors were not given: {sorted(missing)[:3]}")
    if len(shards) > 1:
        total = sum(_nbytes(*entry) for entry in shapes.values())
        weight_map = {name: path.name for name, (path, _) in places.items()}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize
