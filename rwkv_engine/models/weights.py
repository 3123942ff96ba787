"""Matrices of a model, by how their weights are stored. Activations come and go in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# torch multiplies a few float16 rows on the CPU as fast as memory gives the weights, many of them ten times slower than
# float32; from here on the weights are widened first.
FEW_ROWS = 4
# Rows of a matrix widened at a time: the copy stays in the cache.
WIDENED = 1024


class Dense(nn.Linear):
    """y = x W^T with W in float32, bfloat16 or float16; x and y in float32 whatever W is in."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        weight = self.weight
        if weight.dtype == x.dtype:
            return F.linear(x, weight)
        if weight.dtype == torch.bfloat16:
            return F.linear(x.to(torch.bfloat16), weight).to(x.dtype)
        return _half_product(x, weight) if x.numel() <= FEW_ROWS * x.shape[-1] else _widened_product(x, weight)


def _half_product(x: Tensor, weight: Tensor) -> Tensor:
    """Each row is brought below 1 by a power of two, which costs no digit: relu(k)^2 may pass float16's 65504."""
    _, exponent = torch.frexp(x.abs().amax(dim=-1, keepdim=True))
    scaled = torch.ldexp(x, -exponent).to(weight.dtype)
    return torch.ldexp(F.linear(scaled, weight).to(x.dtype), exponent)


def _widened_product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([F.linear(x, part.to(x.dtype)) for part in weight.split(WIDENED)], dim=-1)
