"""Quantises a matrix to int4, in groups of 64 weights with a scale s and a minimum m, see `ops.int4`.

The error of a product y = x W^T is, on average over inputs x that are not correlated, the sum of x_k^2 (W - W')^2. So
the squares of errors are weighted with the second moments h_k = E[x_k^2] of the inputs, as far as the model's version
knows them (`Model.input_moments`). Only their ratios matter.

For each group, s and m begin as the range of its weights times 0.7 to 1 around its middle, whichever causes the least
weighted error; then they are computed from the integers by weighted least squares, and the integers from them, four
times, as long as that reduces the error.

In tiles, where a group has 64 inputs, the columns are multiplied by a power of sqrt(h) before: 0, 1/4, 1/2, 3/4 or 1,
whichever causes the least weighted error in a sample of the rows (compare AWQ, Lin et al. 2023, arXiv:2306.00978). It
gives inputs that are large the precision that they need. In rows of W^T a group has one input, so nothing is to be
gained. In either case all weights are multiplied by a power of two that makes the largest about 2^8, because float16
has a small range.

The result has the same bits on every processor and for any number of threads, see `models.sums`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.models.sums import summed, total
from rwkv_engine.ops.int4 import (
    GROUP,
    LARGEST,
    int4_rows_shape,
    int4_tiles_shape,
    pack_int4_rows,
    pack_int4_tiles,
)
from rwkv_engine.storage import huge_pages

FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
ROUNDS = 4
# Rows that are processed at a time, a multiple of those of a tile; and rows in the sample.
PIECE = SAMPLE = 128
EXPONENT = 8
# The smallest second moment, relative to the largest: an input that seems to be always zero may not be.
_FLOOR = 2.0**-40


class Int4Error(NamedTuple):
    """The error that int4 causes in a product, estimated from a sample of the rows.

    Attributes:
        absolute: the mean square of the error of an output.
        relative: the same over the mean square of an output.
    """

    absolute: float
    relative: float


def quantized_int4(weight: Tensor, form: str, moments: Tensor | None) -> tuple[Tensor, Tensor]:
    """Quantises a matrix.

    Args:
        weight: W (N, K), finite, of any floating-point dtype and any strides.
        form: "tiles" or "input_major".
        moments: E[x_k^2] (K,) of the inputs, not negative; None if they are not known.

    Returns:
        W in this form, uint8, and the scales of the columns (K,) float32, positive.
    """
    n, k = weight.shape
    moments = _usable(moments)
    columns, _ = int4_columns(weight, form, moments)
    weights = _relative(moments, columns)
    if form == "tiles":
        tiles = huge_pages.empty(int4_tiles_shape(n, k), torch.uint8, weight.device)
        for part, room in zip(weight.split(PIECE), tiles.split(PIECE // 16), strict=True):
            pack_int4_tiles(*_quantized(part.float() / columns, weights), room)
        return tiles, columns
    rows = huge_pages.empty(int4_rows_shape(n, k), torch.uint8, weight.device)
    for part, of_part, room in zip(weight.t().split(PIECE), columns.split(PIECE), rows.split(PIECE), strict=True):
        pack_int4_rows(*_quantized(part.float() / of_part.unsqueeze(-1), None), room)
    return rows, columns


def int4_columns(weight: Tensor, form: str, moments: Tensor | None) -> tuple[Tensor, Int4Error]:
    """The scales of the columns of a matrix, and the error of the matrix, both from a sample of its rows.

    The arguments are those of `quantized_int4`.
    """
    moments = _usable(moments)
    step = -(-(weight.shape[0] if form == "tiles" else weight.shape[1]) // SAMPLE)
    largest = torch.stack(weight.aminmax()).abs().max().double()
    known = torch.ones(weight.shape[1], dtype=torch.float64, device=weight.device) if moments is None else moments
    if form != "tiles":
        columns = _power_of_two(largest).expand(weight.shape[1]).float()
        sample, h = weight.t()[::step].float().contiguous(), known[::step].double().unsqueeze(-1)
        rounded = _rounded(sample / columns[0], None).double() * columns[0].double()
        return columns.contiguous(), _error(sample, rounded, h, weight.shape[0] / step)
    sample, best = weight[::step].float(), None
    for power in [torch.ones_like(known)] if moments is None else _powers(_floored(known)):
        of_row = 1 / power
        scale = _power_of_two((weight.abs().amax(dim=0).double() / of_row).max())
        columns = (of_row * scale).float()
        rounded = _rounded(sample / columns, _relative(moments, columns)).double() * columns.double()
        error = _error(sample, rounded, known.double(), len(sample))
        if best is None or error.absolute < best[1].absolute:
            best = columns, error
    assert best is not None
    return best


def _usable(moments: Tensor | None) -> Tensor | None:
    """The moments, if they are finite and not all zero."""
    return moments if moments is not None and moments.isfinite().all() and moments.any() else None


def _powers(moments: Tensor) -> list[Tensor]:
    """sqrt(h) to the powers 0, 1/4, 1/2, 3/4 and 1, (K,) float64. Square roots have the same bits everywhere."""
    whole = moments.sqrt()
    half = whole.sqrt()
    quarter = half.sqrt()
    return [torch.ones_like(whole), quarter, half, half * quarter, whole]


def _floored(moments: Tensor) -> Tensor:
    h = moments.double()
    return h.clamp_min(h.max() * _FLOOR)


def _relative(moments: Tensor | None, columns: Tensor) -> Tensor | None:
    """The weights of squared errors after division by the scales of the columns, at most 1; float32."""
    if moments is None:
        return None
    h = _floored(moments) * columns.double().square()
    return (h / h.max()).float().clamp_min(_FLOOR)


def _power_of_two(largest: Tensor) -> Tensor:
    """The power of two, float64, that divides numbers up to `largest` to numbers up to 2^EXPONENT."""
    _, exponent = torch.frexp(largest)
    return torch.ldexp(torch.ones_like(largest), exponent.clamp(-100, 127) - EXPONENT)


def _error(weight: Tensor, rounded: Tensor, moments: Tensor, outputs: float) -> Int4Error:
    """See `Int4Error`; `weight` and `rounded` are samples of the same shape, with the moments of each element."""
    absolute = total((weight.double() - rounded).square_().mul_(moments))
    signal = total(weight.double().square_().mul_(moments))
    return Int4Error(absolute / outputs, absolute / signal if signal > 0 else 0.0)


def _rounded(x: Tensor, weights: Tensor | None) -> Tensor:
    """Numbers x (M, L) as int4 represents them."""
    q, parameters = _quantized(x, weights)
    s, m = parameters.float().split(1, dim=-1)
    padded = F.pad(q, (0, -x.shape[1] % GROUP)).view(len(x), -1, GROUP)
    return (padded * s + m).view(len(x), -1)[:, : x.shape[1]]


def _quantized(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Quantises numbers x (M, L) in groups of 64 along L, with the weight (L,) of each squared error.

    Returns:
        q (M, L) uint8, and the scale and minimum of each group, (M, ceil(L / 64), 2) float16.
    """
    length = x.shape[1]
    if weights is None:
        weights = torch.ones(length, dtype=torch.float32, device=x.device)
    if padding := -length % GROUP:  # repeats of a number do not change the range, and have no weight
        x = torch.cat([x, x[:, -1:].expand(-1, padding)], dim=1)
        weights = F.pad(weights, (0, padding))
    x, h = x.view(len(x), -1, GROUP), weights.view(-1, GROUP)
    low, high = x.aminmax(dim=-1, keepdim=True)
    middle, half = (low + high) * 0.5, (high - low) * 0.5
    best = None
    for factor in FACTORS:
        best = _better(best, x, h, half * (factor * 2 / LARGEST), middle - half * factor)
    assert best is not None
    total_h, total_hx = summed(h.clone(), -1, keepdim=True), summed(x * h, -1, keepdim=True)
    for _ in range(ROUNDS):
        q, s = best[1], best[2].float()
        total_hq, total_hqq = summed(q * h, -1, keepdim=True), summed(q * q * h, -1, keepdim=True)
        determinant = total_h * total_hqq - total_hq * total_hq
        is_regular = determinant > 2.0**-16 * total_h * total_hqq
        slope = total_h * summed(q * x * h, -1, keepdim=True) - total_hq * total_hx
        s = torch.where(is_regular, slope / torch.where(is_regular, determinant, 1), s)
        best = _better(best, x, h, s, (total_hx - s * total_hq) / total_h)
    q, s, m = best[1:]
    return q.to(torch.uint8).view(len(x), -1)[:, :length], torch.cat([s, m], dim=-1)


Candidate = tuple[Tensor, Tensor, Tensor, Tensor]  # weighted error, q, s and m of each group


def _better(best: Candidate | None, x: Tensor, h: Tensor, s: Tensor, m: Tensor) -> Candidate:
    """For each group the better one of the best candidate so far and the one with these scales and minima."""
    halves = s.half(), m.half()
    s, m = (t.float() for t in halves)
    q = ((x - m) / torch.where(s > 0, s, 1)).round_().clamp_(0, LARGEST)
    error = summed((q * s).add_(m).sub_(x).square_().mul_(h), -1, keepdim=True)
    candidate = (error, q, *halves)
    if best is None:
        return candidate
    is_better = error < best[0]
    return tuple(torch.where(is_better, new, old) for new, old in zip(candidate, best, strict=True))  # type: ignore[return-value]
