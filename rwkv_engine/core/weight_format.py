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
        scaled_axes: the axes of a matrix (N, K) each of whose indices has a float32 scale, see `ops.int8` and
            `ops.int4`.
    """

    name: str
    storage: torch.dtype
    bytes_per_weight: float
    scaled_axes: tuple[int, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether the storage holds the weights as floating-point numbers, which a cast converts to another dtype."""
        return self.storage.is_floating_point

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """The bytes of a tensor of this shape with its scales, without the padding of a matrix to full tiles."""
        return int(math.prod(shape) * self.bytes_per_weight) + 4 * self.n_scales(shape)

    def n_scales(self, shape: tuple[int, ...]) -> int:
        """The number of float32 scales of a matrix of this shape."""
        return sum(shape[axis] for axis in self.scaled_axes)

    def __str__(self) -> str:
        return self.name


FP32 = WeightFormat("fp32", torch.float32, 4)
FP16 = WeightFormat("fp16", torch.float16, 2)
BF16 = WeightFormat("bf16", torch.bfloat16, 2)
I8 = WeightFormat("i8", torch.int8, 1, scaled_axes=(0, 1))
# 4 bits, and a 16-bit scale and minimum for every 64 weights.
I4 = WeightFormat("i4", torch.uint8, 9 / 16, scaled_axes=(1,))
FORMATS = {weights.name: weights for weights in (FP32, FP16, BF16, I8, I4)}


def float_format(dtype: torch.dtype) -> WeightFormat:
    """The format whose storage is this floating-point dtype; float32 for float64, which has no kernels."""
    return next((weights for weights in FORMATS.values() if weights.storage == dtype), FP32)
