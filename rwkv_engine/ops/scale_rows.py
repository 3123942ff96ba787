"""scale_rows: rows of activations as float16, each scaled by a power of two."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define

SCALE_ROWS_SCHEMA = "scale_rows(Tensor x, Tensor? columns=None) -> (Tensor, Tensor)"


def scale_rows(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows as float16, whatever their size: squared activations can exceed 65504.

    A row is 2^e times numbers below 1. Dividing by a power of two loses nothing, so the error of a number is that of
    rounding it to float16: at most 2^-11 of itself or 2^-25 of the row's power.

    Args:
        x: (M, K) float32.
        columns: (K,) float32, which the columns are multiplied by first; None for none.

    Returns:
        The rows divided by their powers, (M, K) float16, and the powers of two (M, 1) float32, from 2^-126 to 2^126; 1
        for rows of zeros, or with infinity.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.scale_rows(x, columns)


def scale_rows_reference(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`scale_rows` in plain torch."""
    x = x if columns is None else x * columns
    down, powers = powers_of_rows(x)
    return (x * down).half(), powers


def powers_of_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The powers of two of `scale_rows` for the rows of x, (M, 1) float32: their inverses, and themselves."""
    _, exponent = torch.frexp(x.abs().nan_to_num(0, torch.inf).amax(dim=-1, keepdim=True))
    exponent = exponent.where(x.abs().amax(dim=-1, keepdim=True) != torch.inf, 0).clamp(-126, 126)
    one = torch.ones_like(exponent, dtype=x.dtype)
    return torch.ldexp(one, -exponent), torch.ldexp(one, exponent)


def _fake(x, columns=None):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=torch.float16), x.new_empty(len(x), 1)


define(SCALE_ROWS_SCHEMA, scale_rows_reference, _fake)
