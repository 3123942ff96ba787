"""Products of quantised matrices with some hundred rows: which rows they serve, and that they are exact."""

from __future__ import annotations

import pytest
import torch
from ops.int4_matrices import Int4Matrix
from ops.test_int8_weights import Quantized
from ops.test_mixing4_steps import numbers
from torch._subclasses.fake_tensor import FakeTensorMode

from rwkv_engine.ops import quantised_product, scale_rows
from rwkv_engine.ops.linear_many import linear_many_reference
from rwkv_engine.ops.quantised_product import MOST_PRODUCT_ROWS, has_quantised_product
from rwkv_engine.ops.tiles import tiled_shape


def matrix_of(kind: str, n: int, k: int):
    """The tiles, the scales, those of the columns, and the matrix in float64."""
    if kind == "int8":
        int8 = Quantized.random(n, k)
        return int8.tiles, int8.scales, int8.scales[n:], int8.exact
    int4 = Int4Matrix.random(n, k, "tiles")
    return int4.packed, int4.columns, int4.columns, int4.exact


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("size", [(33, 72), (80, 136)], ids=str)
def test_sums_are_off_by_roundings_to_float16(kind, size):
    tiles, scales, columns, exact = matrix_of(kind, *size)
    x = numbers(1)(19, size[1]) * torch.logspace(-9, 9, 19).unsqueeze(1)
    y = quantised_product(*scale_rows(x, columns), tiles, size[0], scales)
    assert y.dtype == torch.float32
    bound = x.double().abs() @ exact.abs().t() * 2.0**-10 + (x * columns).abs().amax(1, keepdim=True) * 2.0**-20
    assert ((y - x.double() @ exact.t()).abs() <= bound).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_opcheck(kind):
    tiles, scales, columns, _ = matrix_of(kind, 20, 64)
    arguments = *scale_rows(numbers(1)(3, 64), columns), tiles, 20, scales
    torch.library.opcheck(torch.ops.rwkv_engine.quantised_product.default, arguments)


@pytest.mark.slow
def test_gpus_use_it_for_few_rows_of_quantised_tiles():
    """By the shapes alone."""
    with FakeTensorMode():
        for rows, inputs, dtype, uses in (
            (1, 64, torch.int8, True),
            (MOST_PRODUCT_ROWS, 64, torch.int8, True),
            (MOST_PRODUCT_ROWS + 1, 64, torch.int8, False),
            (17, 60, torch.int8, False),
            (17, 64, torch.float16, False),
        ):
            x = torch.empty(rows, inputs, device="cuda")
            tiles = torch.empty(tiled_shape(48, inputs, dtype), dtype=dtype, device="cuda")
            scales = torch.empty(48 + inputs, device="cuda") if dtype == torch.int8 else None
            assert has_quantised_product(x, tiles) == uses
            assert linear_many_reference(x, tiles, 48, scales).shape == (rows, 48)
        assert not has_quantised_product(torch.empty(17, 64), tiles)
        assert not has_quantised_product(x, torch.empty(64, 48, dtype=torch.int8, device="cuda"))
