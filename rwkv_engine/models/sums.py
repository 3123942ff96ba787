"""Sums and quotients with the same bits on every processor and for any number of threads.

The order of additions in torch's own sums depends on both. Here it depends on the shape only: sums are computed by
pairwise halving with element-wise operations.
"""

from __future__ import annotations

import torch
from torch import Tensor


def divided(x: Tensor, number: int) -> Tensor:
    """x / number. On GPUs torch multiplies by the reciprocal of a Python number, whose last bit may differ."""
    return x / torch.full((), number, dtype=x.dtype, device=x.device)


def summed(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The sum over a dimension of `x`, which is overwritten."""
    dim %= x.ndim
    while (size := x.shape[dim]) > 1:
        if size % 2:
            x.select(dim, 0).add_(x.select(dim, size - 1))
        half = size // 2
        x = x.narrow(dim, 0, half).add_(x.narrow(dim, half, half))
    return x if keepdim else x.squeeze(dim)


def total(x: Tensor) -> float:
    """The sum of all elements of `x`, which may be overwritten, in its dtype."""
    return summed(x.reshape(-1), 0).item()
