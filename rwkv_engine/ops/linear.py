"""linear: y = x W^T for a few rows x, with W in tiles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine import _extension
from rwkv_engine.ops._library import define
from rwkv_engine.ops.tiles import untile_reference

LINEAR_SCHEMA = "linear(Tensor x, Tensor tiles, int outputs) -> Tensor"
# More rows than this are better multiplied as a matrix.
MOST_ROWS = 16


def linear(x: Tensor, tiles: Tensor, outputs: int) -> Tensor:
    """Multiplies a few rows; a row's bits do not depend on how many there are.

    Activations and sums are float32 whatever the weights are.

    Args:
        x: (B, K) float32.
        tiles: W (N, K) as `ops.tiles.tile` returns it.
        outputs: N.

    Returns:
        (B, N) float32.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
    """
    _extension.ensure_loaded()
    return torch.ops.rwkv_engine.linear(x, tiles, outputs)


def linear_reference(x: Tensor, tiles: Tensor, outputs: int) -> Tensor:
    """`linear` in plain torch."""
    return F.linear(x, untile_reference(tiles, outputs, x.shape[1]).to(x.dtype))


define(LINEAR_SCHEMA, linear_reference, lambda x, tiles, outputs: x.new_empty(x.shape[0], outputs))
