"""linear: y = x W^T for a few rows x, with W in tiles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.tiles import untile_reference

LINEAR_SCHEMA = "linear(Tensor x, Tensor tiles, int outputs, Tensor? scales=None) -> Tensor"
# More rows than this are better multiplied as a matrix.
MOST_ROWS = 16


def linear(x: Tensor, tiles: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """Multiplies a few rows; a row's bits do not depend on how many there are.

    Activations and sums are float32 beside float weights, and beside all on GPUs. Beside int8 weights on the CPU,
    activations times their column's scale become whole numbers of 16 bits in groups of 256 inputs, the largest of a
    group 32767: each is off by at most 2^-16 of that largest, and sums in a group are exact.

    Args:
        x: (B, K) float32.
        tiles: W (N, K) as `ops.tiles.tile` returns it.
        outputs: N.
        scales: of int8 weights, (N + K,) float32, see `ops.int8`.

    Returns:
        (B, N) float32.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.linear(x, tiles, outputs, scales)


def linear_reference(x: Tensor, tiles: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """`linear` in plain torch."""
    return F.linear(x, in_floats(untile_reference(tiles, outputs, x.shape[1]), scales).to(x.dtype))


def _fake(x: Tensor, tiles: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    return x.new_empty(len(x), outputs)


define(LINEAR_SCHEMA, linear_reference, _fake)
