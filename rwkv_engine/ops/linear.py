"""linear: y = x W^T for few rows x, with W in tiles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.tiles import untile_reference

LINEAR_SCHEMA = "linear(Tensor x, Tensor tiles, int outputs, Tensor? scales=None) -> Tensor"
# For more rows than this, `linear_many` is faster.
MOST_ROWS = 16


def linear(x: Tensor, tiles: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """y = x W^T for few rows x. The bits of a row of y do not depend on the number of rows.

    With float weights, and on GPUs with all weights, activations and sums are float32. With int8 weights on the CPU,
    the activations times their column's scale are quantised to 16-bit integers in groups of 256 inputs, so that the
    largest of a group becomes 32767. The error of an activation is at most 2^-16 of that largest, and sums within a
    group are exact.

    Args:
        x: (B, K) float32.
        tiles: W (N, K) as `ops.tiles.tile` writes it.
        outputs: N.
        scales: the scales of int8 weights, (N + K,) float32, see `ops.int8`; None for float weights.

    Returns:
        (B, N) float32.

    Raises:
        RuntimeError: shapes or dtypes do not match.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.linear(x, tiles, outputs, scales)


def linear_reference(x: Tensor, tiles: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """`linear` in plain torch."""
    return F.linear(x, in_floats(untile_reference(tiles, outputs, x.shape[1]), scales).to(x.dtype))


def _fake(x: Tensor, tiles: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    return x.new_empty(len(x), outputs)


define(LINEAR_SCHEMA, linear_reference, _fake)
