"""Matrices of a model, by how their weights are stored. Activations come and go in float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_engine.ops import linear, untile
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.ops.tiles import ROWS

# torch multiplies a few float16 rows on the CPU as fast as memory gives the weights, many of them ten times slower than
# float32; from here on the weights are widened first.
FEW_ROWS = 4
# Rows of a matrix converted at a time: the copy stays in the cache.
WIDENED = 1024


class Dense(nn.Linear):
    """y = x W^T with W row after row, in float32, bfloat16 or float16; for training, and where there are no kernels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        return product(x, self.weight)


class Tiled(nn.Module):
    """The same with W in tiles, see `ops.tiles`."""

    def __init__(self, tiles: Tensor, outputs: int, inputs: int):
        """`tiles`: of W (outputs, inputs); a part of a mapped file, perhaps."""
        super().__init__()
        self.out_features, self.in_features = outputs, inputs
        self.tiles = nn.Parameter(tiles, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), a copy."""
        return untile(self.tiles, self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        rows = x.reshape(-1, self.in_features)
        if len(rows) > MOST_ROWS:
            return torch.cat([product(x, part) for part in self._parts()], dim=-1)
        return linear(rows, self.tiles, self.out_features).view(*x.shape[:-1], self.out_features)

    def _parts(self) -> Iterator[Tensor]:
        """The matrix row after row, some rows at a time: the copy stays in the cache, and memory is used again."""
        left = self.out_features
        for part in self.tiles.split(WIDENED // ROWS):
            yield untile(part, min(left, WIDENED), self.in_features)
            left -= WIDENED


class InputMajor(nn.Module):
    """The same with W^T row after row: what one input adds to the outputs lies together, so inputs can be skipped."""

    def __init__(self, rows: Tensor):
        """`rows`: W^T (inputs, outputs); a part of a mapped file, perhaps."""
        super().__init__()
        self.rows = nn.Parameter(rows, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), a view."""
        return self.rows.t()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        return product(x, self.weight)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) float32 times W^T, W (N, K) in any floating dtype -> (..., N) float32."""
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
