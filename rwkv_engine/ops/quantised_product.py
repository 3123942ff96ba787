"""quantised_product: y = x W^T for some hundred rows x of float16, with int8 or int4 weights in tiles, on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define
from rwkv_engine.ops.in_floats import tiles_in_floats

QUANTISED_PRODUCT_SCHEMA = (
    "quantised_product(Tensor x, Tensor powers, Tensor tiles, int outputs, Tensor scales) -> Tensor"
)
# With more rows, a copy of the matrix for a product of torch's costs less than what this one is slower.
MOST_PRODUCT_ROWS = 256


def has_quantised_product(x: Tensor, tiles: Tensor) -> bool:
    """Whether `quantised_product` is for rows like x (M, K) on x's device, and these weights."""
    fits = 0 < len(x) <= MOST_PRODUCT_ROWS and x.shape[1] % 8 == 0
    return fits and x.is_cuda and tiles.ndim > 2 and tiles.dtype in (torch.int8, torch.uint8)


def quantised_product(x: Tensor, powers: Tensor, tiles: Tensor, outputs: int, scales: Tensor) -> Tensor:
    """y = powers (x W^T), where the scales of W's columns are in x already, as `scale_rows` leaves them.

    On a GPU tensor cores multiply what is converted to float16 tile by tile, so no copy of the matrix is made, and
    sums are float32. It has no gradient.

    Args:
        x: (M, K) float16, K a multiple of 8.
        powers: (M, 1) float32, which the rows of the result are multiplied by.
        tiles: W (N, K), int8 as `ops.tiles.tile` writes it, or int4 (uint8) in tiles.
        outputs: N.
        scales: as for `ops.linear`; those of columns are ignored.

    Returns:
        (M, N) float32.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.quantised_product(x, powers, tiles, outputs, scales)


def quantised_product_reference(x: Tensor, powers: Tensor, tiles: Tensor, outputs: int, scales: Tensor) -> Tensor:
    """`quantised_product` in plain torch, in float32."""
    inputs = x.shape[1]
    of_rows, ones = scales[:-inputs], torch.ones_like(scales)  # int4 weights have no scales of rows
    weight = tiles_in_floats(tiles, outputs, inputs, ones).half()
    y = (x.float() @ weight.float().t()) * powers
    return y * of_rows if len(of_rows) else y


def _fake(x, powers, tiles, outputs, scales):  # type: ignore[no-untyped-def]
    return powers.new_empty(len(x), outputs)


define(QUANTISED_PRODUCT_SCHEMA, quantised_product_reference, _fake)
