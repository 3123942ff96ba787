"""Quantises a matrix to int8, with a scale for each row and each column, see `ops.int8`.

With R[n] the root mean square of row n, and rint rounding halves to even:

    columns[k] = sqrt(mean over n of (W[n, k] / R[n])^2)
    rows[n]    = max over k of |W[n, k] / columns[k]| / 127
    q[n, k]    = rint(W[n, k] / columns[k] / rows[n])                       W[n, k] ~ rows[n] q[n, k] columns[k]

The column scales prevent inputs with unusually large weights from reducing the precision of all others; dividing by
R[n] gives every row the same influence on them. A scale is 1 where all weights are zero. The error of a weight is at
most half of rows[n] columns[k]. Zeros are exact, and so are, up to float32 rounding, matrices whose columns are
constant.

The result has the same bits on every processor and for any number of threads, see `models.sums`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.models.sums import divided, summed

LARGEST = 127
# Rows that are processed at a time, so that loading needs no float32 copy of a whole matrix.
PIECE = 128
_SMALLEST = torch.finfo(torch.float32).tiny  # the smallest scale: smaller float32 numbers are denormal


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises a matrix.

    Args:
        weight: W (N, K), finite, of any floating-point dtype and any strides.

    Returns:
        q (N, K) int8 in [-127, 127], and the scales (N + K,) float32: of the rows, then of the columns. Scales are
        positive; they are infinite if weights are close to the largest float32.
    """
    n, k = weight.shape
    q = torch.empty(n, k, dtype=torch.int8, device=weight.device)
    scales = torch.empty(n + k, dtype=torch.float32, device=weight.device)
    rows, columns = scales.split([n, k])
    columns.copy_(_column_scales(weight))
    for part, room, of_rows in zip(weight.split(PIECE), q.split(PIECE), rows.split(PIECE), strict=True):
        scaled = part.float() / columns
        low, high = scaled.aminmax(dim=1)
        of_rows.copy_(_positive(divided(torch.maximum(-low, high), LARGEST)))
        room.copy_(scaled.div_(of_rows.unsqueeze(-1)).round_())
    return q, scales


def _column_scales(weight: Tensor) -> Tensor:
    """The scales of the columns (K,), computed in float64, whose range includes the squares of all float32 numbers."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for part in weight.split(PIECE):
        squares = part.double().square()
        of_rows = divided(summed(squares.clone(), 1), weight.shape[1])
        squares /= torch.where(of_rows > 0, of_rows, 1).unsqueeze(-1)
        total += summed(squares, 0)
    return _positive(divided(total, len(weight)).sqrt())


def _positive(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales.clamp_min(_SMALLEST), 1)
