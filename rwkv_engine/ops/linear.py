"""linear: y = x W^T for few rows x, with W in tiles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define
from rwkv_engine.ops.in_floats import tiles_in_floats

LINEAR_SCHEMA = "linear(Tensor x, Tensor tiles, int outputs, Tensor? scales=None) -> Tensor"
# For more rows than this, `linear_many` is faster.
MOST_ROWS = 16
# On the CPU the second 16 rows find the weights of the first in the cache, so 32 take less time than twice 16.
MOST_ROWS_ON_CPU = 32


def linear(x: Tensor, tiles: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """y = x W^T for few rows x. The bits of a row of y do not depend on the number of rows.

    With float weights, and on GPUs with all weights, activations and sums are float32. With int8 weights on the CPU,
    the activations times their column's scale are quantised to 16-bit integers in groups of 256 inputs, so that the
    largest of a group becomes 32767. The error of an activation is at most 2^-16 of that largest, and sums within a
    group are exact.

    Args:
        x: (B, K) float32.
        tiles: W (N, K) as `ops.tiles.tile` writes it, or in uint8 as `ops.int4` does.
        outputs: N.
        scales: (N + K,) float32 for int8 weights, see `ops.int8`; (K,) float32 for int4 weights, see `ops.int4`; None
            for float weights.

    Returns:
        (B, N) float32.

    Raises:
        RuntimeError: shapes or dtypes do not match.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.linear(x, tiles, outputs, scales)


def linear_reference(x: Tensor, tiles: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """`linear` in plain torch."""
    return F.linear(x, tiles_in_floats(tiles, outputs, x.shape[1], scales).to(x.dtype))


def _fake(x: Tensor, tiles: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    return x.new_empty(len(x), outputs)


define(LINEAR_SCHEMA, linear_reference, _fake)
