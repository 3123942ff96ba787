"""The number formats of weights, on disk and in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class WeightFormat:
    """How the weights of one tensor are encoded. It is not a torch dtype: several formats may share one storage dtype.

    Attributes:
        name: its name in strategies, packed files and messages.
        storage: the dtype of the tensor that holds the encoded weights.
        bytes_per_weight: bytes per weight, without scales.
        has_scales: whether each row and each column has a float32 scale, see `ops.int8`.
        has_kernels: False for a format that strategies can plan but no kernel supports yet.
    """

    name: str
    storage: torch.dtype
    bytes_per_weight: float
    has_scales: bool = False
    has_kernels: bool = True

    @property
    def is_float(self) -> bool:
        """Whether the storage holds the weights as floating-point numbers, which a cast converts to another dtype."""
        return self.storage.is_floating_point

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """The bytes of a tensor of this shape with its scales, without the padding of a matrix to full tiles."""
        scales = 4 * sum(shape) if self.has_scales else 0
        return int(math.prod(shape) * self.bytes_per_weight) + scales

    def __str__(self) -> str:
        return self.name


FP32 = WeightFormat("fp32", torch.float32, 4)
FP16 = WeightFormat("fp16", torch.float16, 2)
BF16 = WeightFormat("bf16", torch.bfloat16, 2)
I8 = WeightFormat("i8", torch.int8, 1, has_scales=True)
# 4 bits, and a 16-bit scale and minimum for every 64 weights.
I4 = WeightFormat("i4", torch.uint8, 9 / 16, has_kernels=False)
FORMATS = {weights.name: weights for weights in (FP32, FP16, BF16, I8, I4)}


def float_format(dtype: torch.dtype) -> WeightFormat:
    """The format whose storage is this floating-point dtype; float32 for float64, which has no kernels."""
    return next((weights for weights in FORMATS.values() if weights.storage == dtype), FP32)
