"""A model's tensors in one safetensors file or in several with an index, as Hugging Face names them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rwkv_engine.checkpoints.safetensors_header import Header, raw_bytes

STEM, SUFFIX = "model", ".safetensors"
INDEX = f"{STEM}{SUFFIX}.index.json"
Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Shard:
    """One file to be written.

    Attributes:
        name: of the file.
        head: its bytes before the first tensor.
        begins: where each tensor's bytes begin.
    """

    name: str
    head: bytes
    begins: dict[str, int]


def plan_shards(shapes: Shapes, size: int) -> list[Shard]:
    """Which tensor goes where: in their order, a new file where the next tensor would make one larger than `size`.

    A larger tensor has a file of its own. Inside a file wide types come first, so that every tensor lies at a multiple
    of its type's size, which some readers rely on and the format does not promise.
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
    """Writes the files, and their index if they are several; holds one tensor at a time.

    Args:
        folder: an empty one.
        shapes: dtype and shape of every tensor.
        size: bytes of tensors in a file, see `plan_shards`.
        tensors: all of them with their names, in any order.

    Raises:
        ValueError: they are not those announced.
        OSError: they cannot be written there.
    """
    shards = plan_shards(shapes, size)
    places = {name: (folder / shard.name, begin) for shard in shards for name, begin in shard.begins.items()}
    for shard in shards:
        (folder / shard.name).write_bytes(shard.head)
    missing = set(shapes)
    for name, tensor in tensors:
        if name not in missing or shapes[name] != (tensor.dtype, tuple(tensor.shape)):
            raise ValueError(f"{name}: twice, or not of the type and shape announced")
        missing.remove(name)
        path, begin = places[name]
        with open(path, "r+b") as file:  # not all at once: there may be more of them than may be open
            file.seek(begin)
            file.write(raw_bytes(tensor.contiguous()))
        del tensor  # before the next one is made
    if missing:
        raise ValueError(f"tensors were announced that did not come: {sorted(missing)[:3]}")
    if len(shards) > 1:
        total = sum(_nbytes(*entry) for entry in shapes.values())
        weight_map = {name: path.name for name, (path, _) in places.items()}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
