"""Matrices of every number format in floats, one function for each memory layout of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.ops.int4 import int4_rows_in_floats, int4_tiles_in_floats
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.tiles import untile


def tiles_in_floats(tiles: Tensor, outputs: int, inputs: int, scales: Tensor | None) -> Tensor:
    """W (N, K) of tiles; a copy, in the dtype of the scales (float32), or in that of float weights.

    Args:
        tiles: W as `ops.tiles.tile` or, in uint8, `ops.int4.pack_int4_tiles` writes it.
        outputs: N.
        inputs: K.
        scales: (N + K,) float32 for int8 weights, (K,) float32 for int4 weights, None for float weights.

    Raises:
        RuntimeError: the scales do not fit the weights.
    """
    if tiles.dtype == torch.uint8:
        return int4_tiles_in_floats(tiles, _columns(scales, inputs), outputs)
    return in_floats(untile(tiles, outputs, inputs), scales)


def rows_in_floats(rows: Tensor, outputs: int, scales: Tensor | None) -> Tensor:
    """W (N, K) of W^T row-major, in the dtype of the scales (float32); a view of float weights.

    Args:
        rows: W^T (K, N), or in uint8 as `ops.int4.pack_int4_rows` writes it.
        outputs: N.
        scales: as for `tiles_in_floats`.

    Raises:
        RuntimeError: the scales do not fit the weights.
    """
    if rows.dtype == torch.uint8:
        return int4_rows_in_floats(rows, _columns(scales, len(rows)), outputs).t()
    return in_floats(rows.t(), scales)


def _columns(scales: Tensor | None, inputs: int) -> Tensor:
    if scales is None or scales.shape != (inputs,):
        raise RuntimeError(
            f"int4 weights need the scales of their {inputs} columns, got"
            f" {None if scales is None else tuple(scales.shape)}"
        )
    return scales
