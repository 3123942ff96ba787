"""What linear_many makes of int8 weights on GPUs: the arithmetic here, and which copies it makes."""

from __future__ import annotations

import pytest
import torch
from ops.test_int8_weights import SIZES, Quantized
from ops.test_mixing4_steps import numbers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_engine.ops.linear_many import int8_product, linear_many_reference
from rwkv_engine.ops.quantised_product import MOST_PRODUCT_ROWS
from rwkv_engine.ops.tiles import tiled_shape


def error_in_bounds(x: Tensor, matrix: Quantized, y: Tensor) -> Tensor:
    """Errors of y = x W^T against float64, as shares of what it may be off by: an activation by 2^-11 of itself, or
    by half the distance of the smallest float16 numbers; a sum by float32's roundings."""
    n, k = matrix.q.shape
    x = x.double()
    scaled = (x * matrix.scales[n:]).abs()
    largest = torch.frexp(scaled.amax(-1, keepdim=True)).exponent
    rounding = torch.maximum(scaled * 2.0**-11, 2.0 ** (largest - 25).double())
    weights = matrix.q.double().abs() * matrix.scales[:n, None]
    bound = rounding @ weights.t() + 2.0**-22 * k**0.5 * (scaled @ weights.t())
    return (y - x @ matrix.exact.t()).abs() / bound.clamp_min(torch.finfo(torch.float32).tiny)


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_activations_are_off_by_half_a_step_of_float16_at_most(size, batch):
    matrix, x = Quantized.random(*size), numbers(1)(batch, size[1])
    assert (error_in_bounds(x, matrix, int8_product(x, matrix.q, matrix.scales)) <= 1).all()


def test_one_weight_alone_shows_every_rounding():
    """Without a sum in which errors cancel: no product is off by more, and some nearly by as much."""
    matrix = Quantized(torch.full((1, 1), 127, dtype=torch.int8), torch.tensor([3.0, 5.0]))
    x = numbers(1)(1000, 1)
    share = error_in_bounds(x, matrix, int8_product(x, matrix.q, matrix.scales))
    assert share.max() <= 1
    assert share.max() > 0.9


def test_a_row_of_any_size_keeps_its_digits():
    """Neither inputs nor sums overflow float16, nor do small ones vanish in it."""
    x = numbers(1)(5, 4096).abs() * torch.tensor([[1e-30], [1e-9], [1], [1e9], [1e30]])
    matrix = Quantized(torch.full((3, 4096), 127, dtype=torch.int8), torch.ones(3 + 4096))
    assert (error_in_bounds(x, matrix, int8_product(x, matrix.q, matrix.scales)) <= 1).all()


def test_zeros_are_exact_and_nan_stays_in_its_row():
    matrix, x = Quantized.random(20, 300), numbers(1)(4, 300)
    x[1] = 0
    clean = int8_product(x, matrix.q, matrix.scales)
    assert (clean[1] == 0).all()
    assert (int8_product(x, torch.zeros_like(matrix.q), matrix.scales) == 0).all()
    for value in (torch.nan, torch.inf):
        x[2, 280] = value
        y = int8_product(x, matrix.q, matrix.scales)
        assert not y[2].isfinite().any()
        assert torch.equal(y[[0, 1, 3]], clean[[0, 1, 3]])


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.bytes = max(self.bytes, result.numel() * result.itemsize)
        return result


@pytest.mark.slow
@pytest.mark.parametrize(("form", "m"), [("tiles", MOST_PRODUCT_ROWS + 1), ("rows", 8), ("tiles", 8)], ids=str)
def test_no_float32_copy_of_the_matrix_is_made(form, m):
    """By the shapes alone, as on a GPU."""
    n, k = 1024, 1024
    shape = tiled_shape(n, k, torch.int8) if form == "tiles" else (k, n)
    with FakeTensorMode():
        x, scales = torch.empty(m, k, device="cuda"), torch.empty(n + k, device="cuda")
        weight = torch.empty(shape, dtype=torch.int8, device="cuda")
        with Largest() as largest:
            y = linear_many_reference(x, weight, n, scales)
    assert (y.shape, y.dtype) == ((m, n), torch.float32)
    assert largest.bytes == (2 * n * k if form == "rows" or m > MOST_PRODUCT_ROWS else 4 * m * k)
