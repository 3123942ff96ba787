"""The header of a safetensors file, made by hand: so tensors can be written one at a time, each where it belongs.

The file is the header's length (8 bytes, little-endian), the header (JSON, spaces behind it), and the tensors' bytes
without holes. torch's own dtypes have the names of `NAMES` there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class Header:
    """Tensors in the order in which their bytes lie.

    Attributes:
        end: bytes of all tensors so far.
    """

    def __init__(self, metadata: Mapping[str, str]):
        self._entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        self.end = 0

    def add(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """The next tensor."""
        begin = self.end
        self.end += math.prod(shape) * dtype.itemsize
        self._entries[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [begin, self.end]}

    def encoded(self, alignment: int) -> bytes:
        """The bytes before the first tensor, a multiple of `alignment` of them."""
        text = json.dumps(self._entries).encode()
        text += b" " * (-(8 + len(text)) % alignment)
        return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's memory, for a file to write."""
    return tensor.view(-1).view(torch.uint8).numpy().data
