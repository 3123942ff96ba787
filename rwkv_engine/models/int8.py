"""Rounding a matrix to int8, with a scale for each row and each column, see `ops.int8`.

With R[n] the root mean square of row n, and rint rounding halves to even:

    columns[k] = sqrt(mean over n of (W[n, k] / R[n])^2)
    rows[n]    = max over k of |W[n, k] / columns[k]| / 127
    q[n, k]    = rint(W[n, k] / columns[k] / rows[n])                       W[n, k] ~ rows[n] q[n, k] columns[k]

A column's scale keeps an input that is large, or whose weights are, from taking the digits of all others; it counts
what is usual in the column, each row for as much as every other. A scale is 1 where all weights are zero. So no weight
is off by more than half of rows[n] columns[k]; zeros are exact, and matrices of constant columns but for what float32
rounds.

The same weights give the same bits whatever the processor and the number of threads: sums are made by halves, out of
element-wise operations, for torch's own add up in an order that depends on both.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
# Rows looked at together: a float32 copy of a whole matrix would be memory that loading does not need.
PIECE = 128
_SMALLEST = torch.finfo(torch.float32).tiny  # of scales: below, float32 loses digits


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a matrix.

    Args:
        weight: W (N, K), finite, of any floating dtype, at any strides.

    Returns:
        q (N, K) int8 in [-127, 127], and the scales (N + K,) float32: of the rows, then of the columns. Scales are
        positive, and infinite where weights come near the largest float32 there is.
    """
    n, k = weight.shape
    q = torch.empty(n, k, dtype=torch.int8, device=weight.device)
    scales = torch.empty(n + k, dtype=torch.float32, device=weight.device)
    rows, columns = scales.split([n, k])
    columns.copy_(_column_scales(weight))
    for part, room, of_rows in zip(weight.split(PIECE), q.split(PIECE), rows.split(PIECE), strict=True):
        scaled = part.float() / columns
        low, high = scaled.aminmax(dim=1)
        of_rows.copy_(_positive(torch.maximum(-low, high) / LARGEST))
        room.copy_(scaled.div_(of_rows.unsqueeze(-1)).round_())
    return q, scales


def _column_scales(weight: Tensor) -> Tensor:
    """In float64, whose range holds the squares of all float32 numbers."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for part in weight.split(PIECE):
        squares = part.double().square()
        of_rows = _summed(squares.clone(), 1) / weight.shape[1]
        squares /= torch.where(of_rows > 0, of_rows, 1).unsqueeze(-1)
        total += _summed(squares, 0)
    return _positive((total / len(weight)).sqrt())


def _positive(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales.clamp_min(_SMALLEST), 1)


def _summed(x: Tensor, dim: int) -> Tensor:
    """Sum over a dimension of `x`, whose memory is used up."""
    while (size := x.shape[dim]) > 1:
        if size % 2:
            x.select(dim, 0).add_(x.select(dim, size - 1))
        half = size // 2
        x = x.narrow(dim, 0, half).add_(x.narrow(dim, half, half))
    return x.squeeze(dim)
