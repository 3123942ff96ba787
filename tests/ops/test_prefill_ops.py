"""ln_shift, squared_relu_, gate_residual and linear_many: what reads many tokens at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops import gate_residual, linear_many, ln_shift, squared_relu_
from rwkv_engine.ops.gate_residual import gate_residual_reference
from rwkv_engine.ops.linear_many import dense_product, linear_many_reference
from rwkv_engine.ops.ln_shift import ln_shift_reference
from rwkv_engine.ops.squared_relu import squared_relu_reference
from rwkv_engine.ops.tiles import tile_reference, tiled_shape

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1, 1), (2, 17, 33), (12, 64, 2056), (13, 40, 56), (129, 300, 513), (300, 31, 768)]  # M, N, K


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def tiled(weight: Tensor) -> Tensor:
    tiles = torch.empty(tiled_shape(*weight.shape, weight.dtype), dtype=weight.dtype)
    tile_reference(weight, tiles)
    return tiles


LAYOUTS = {"tiles": tiled, "rows": lambda weight: weight.t().contiguous()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_linear_many_against_float64(size, dtype, layout):
    """Its error is below twice that of torch's product in the same precision."""
    m, n, k = size
    weight, x = normal(n, k, scale=k**-0.5).to(dtype), normal(m, k, seed=1)
    packed = LAYOUTS[layout](weight)
    exact = x.double() @ weight.double().t()
    sizes = x.double().abs() @ weight.double().abs().t()

    def error(y):
        assert y.dtype == torch.float32
        return ((y.double() - exact).abs() / sizes).max().item()

    # Sums of float32 in parts of 256: a random walk of so many steps of half a bit.
    floor = 2.0**-24 * math.sqrt(min(k, 256))
    bound = 2 * max(error(dense_product(x, weight)), floor)
    assert error(linear_many(x, packed, n)) < bound
    assert error(linear_many_reference(x, packed, n)) < bound


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_of_a_row_depend_only_on_that_row(dtype, layout):
    weight, x = LAYOUTS[layout](normal(77, 1100).to(dtype)), normal(290, 1100, seed=1)
    together = linear_many(x, weight, 77)
    for first, last in [(0, 1), (5, 6), (5, 19), (271, 290), (100, 290)]:
        assert torch.equal(linear_many(x[first:last], weight, 77), together[first:last])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(linear_many(x, weight, 77), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float16_products_do_not_overflow(layout):
    """Inputs past 65504, as relu(k)^2 may be; the reference scales rows by powers of two."""
    weight, x = (
        normal(20, 100, scale=0.1).half(),
        normal(5, 100, seed=1) * torch.tensor([[1e-9], [1], [1e5], [1e9], [0]]),
    )
    for y in (linear_many(x, LAYOUTS[layout](weight), 20), dense_product(x, weight)):
        expected = x.double() @ weight.double().t()
        error = (y - expected).abs() / (x.double().abs() @ weight.double().abs().t()).clamp_min(1e-30)
        assert error.max() < 2.0**-10


def test_nan_stays_in_its_row():
    x = normal(14, 40)
    x[3, 5] = torch.nan
    for dtype in DTYPES:
        y = linear_many(x, tiled(normal(20, 40).to(dtype)), 20)
        assert y[3].isnan().all()
        assert y[[*range(3), *range(4, 14)]].isfinite().all()
    assert squared_relu_(x)[3, 5].isnan()


def shifts(b: int, t: int, c: int, m: int = 3) -> tuple:
    mixes = torch.rand(m, c, generator=torch.Generator().manual_seed(2))
    return (
        normal(b, t, c, scale=3),
        1 + normal(c, seed=3) / 10,
        normal(c, seed=4) / 10,
        1e-5,
        mixes,
        normal(b, c, seed=5),
    )


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 8), (3, 129, 33), (2, 5, 2056)], ids=str)
def test_ln_shift_against_float64(size):
    arguments = shifts(*size)
    exact = ln_shift_reference(*[a.double() if isinstance(a, Tensor) else a for a in arguments])
    for ours, theirs, expected in zip(ln_shift(*arguments), ln_shift_reference(*arguments), exact, strict=True):
        reference = max((theirs - expected).abs().max().item(), 2.0**-23 * expected.abs().max().item())
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() < 2 * reference


def test_ln_shift_goes_on_where_it_stopped():
    x, *norm, mixes, shift = shifts(2, 40, 24)
    mixed, last = ln_shift(x, *norm, mixes, shift)
    first, between = ln_shift(x[:, :17], *norm, mixes, shift)
    second, end = ln_shift(x[:, 17:], *norm, mixes, between)
    assert torch.equal(torch.cat([first, second], dim=2), mixed)
    assert torch.equal(end, last)


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (40000,), (0,)], ids=str)
def test_gates_against_the_reference(shape):
    x, r, y = (normal(*shape, seed=i, scale=20) for i in range(3))
    assert torch.equal(squared_relu_(x.clone()), squared_relu_reference(x))
    for base in (None, x):
        exact = gate_residual_reference(*[t if t is None else t.double() for t in (base, r, y)])
        # Roundings of the exponential, the division, the product and the sum, each relative to what it makes.
        sizes = y.abs() if base is None else base.abs() + y.abs()
        assert ((gate_residual(base, r, y) - exact).abs() <= 4 * 2.0**-23 * sizes).all()


def test_the_squared_relu_is_in_place_only_without_gradients():
    k = normal(3, 4)
    assert squared_relu_(k) is k
    assert (k >= 0).all()
    before = normal(3, 4)
    for kept in (before.double(), before.clone().requires_grad_()):
        squared_relu_(kept)
        assert torch.equal(kept.float(), before)


def test_strided_arguments():
    x, r, y = (normal(6, 8, seed=i).t() for i in range(3))
    assert torch.equal(squared_relu_(x.clone()), squared_relu_reference(x))
    assert torch.equal(gate_residual(x, r, y), gate_residual(x.contiguous(), r.contiguous(), y.contiguous()))
    weight = tiled(normal(20, 6))
    assert torch.equal(linear_many(x, weight, 20), linear_many(x.contiguous(), weight, 20))


CALLS = {
    "ln_shift": lambda dtype: (ln_shift, [a.to(dtype) if isinstance(a, Tensor) else a for a in shifts(2, 3, 4)]),
    "squared_relu_": lambda dtype: (squared_relu_, [normal(3, 4).to(dtype)]),
    "gate_residual": lambda dtype: (gate_residual, [normal(3, 4, seed=i).to(dtype) for i in range(3)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_the_references(name):
    op, arguments = CALLS[name](torch.float64)
    wanted = [a.requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
    assert torch.autograd.gradcheck(op, wanted)
    op, arguments = CALLS[name](torch.float32)
    arguments[0].requires_grad_()
    result = op(*arguments)
    assert (result[0] if isinstance(result, tuple) else result).requires_grad


def test_opcheck():
    ops = torch.ops.rwkv_engine
    cpu_kernels.ensure_loaded()
    torch.library.opcheck(ops.ln_shift.default, shifts(2, 3, 8))
    torch.library.opcheck(ops.squared_relu_.default, (normal(3, 4),))
    torch.library.opcheck(ops.gate_residual.default, (None, normal(3, 4), normal(3, 4)))
    torch.library.opcheck(ops.linear_many.default, (normal(3, 40), tiled(normal(20, 40).half()), 20))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: linear_many(x[0], tiled(x), 3), r"linear_many: x: expected shape \(M, K\)"),
        (lambda x: linear_many(x, tiled(x), 17), "linear_many: weight: expected 17 x 4 in contiguous tiles"),
        (lambda x: linear_many(x, x, 3), r"linear_many: weight: expected contiguous \(4, 3\)"),
        (
            lambda x: linear_many(x, x.t().contiguous().double(), 3),
            r"bfloat16, float16, int8 or uint8 \(int4\), got Double",
        ),
        (lambda x: squared_relu_(x[:, ::2]), r"squared_relu_: k: expected memory without gaps, got shape \[3, 2\]"),
        (lambda x: squared_relu_(x[:1].expand(3, 4)), r"squared_relu_: k: expected memory without gaps"),
        (lambda x: ln_shift(x, x[0], x[0], 1e-5, x, x), r"ln_shift: x: expected shape \(B, T, C\)"),
        (lambda x: ln_shift(x[None], x[0], x[0, :3], 1e-5, x, x[:1]), r"ln_bias: expected shape \[4\], got \[3\]"),
        (lambda x: gate_residual(None, x, x[:2]), r"gate_residual: y: expected shape \[3, 4\], got \[2, 4\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(normal(3, 4))
