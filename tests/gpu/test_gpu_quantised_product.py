"""Products of quantised matrices with some hundred rows, on tensor cores, against the reference on the CPU."""

from __future__ import annotations

import pytest
import torch
from conftest import require_gpu
from ops.test_mixing4_steps import numbers
from ops.test_quantised_product import matrix_of

from rwkv_engine.ops import quantised_product, scale_rows

pytestmark = pytest.mark.gpu
require_gpu()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("size", [(33, 72), (80, 136), (2048, 2048), (8, 8192)], ids=str)
@pytest.mark.parametrize("rows", [1, 17, 64, 100, 256])
def test_they_are_those_of_the_reference(kind, size, rows, cuda):
    tiles, scales, columns, _ = matrix_of(kind, *size)
    x, powers = scale_rows(numbers(1)(rows, size[1]), columns)
    expected = quantised_product(x, powers, tiles, size[0], scales)
    y = quantised_product(*(tensor.cuda() for tensor in (x, powers, tiles)), size[0], scales.cuda()).cpu()
    off = (y - expected).abs() / expected.abs().amax(1, keepdim=True)
    assert off.max() < 1e-4  # an int4 weight may be rounded to the other float16
    assert torch.isfinite(y).all()
