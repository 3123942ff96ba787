"""int8 weights in every operator: against float64, against float32 activations, and bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from ops.test_mixing4_steps import KINDS, Half, exactly, numbers
from torch import Tensor

from rwkv_engine.ops import linear, linear_many
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.linear import linear_reference
from rwkv_engine.ops.linear_many import linear_many_reference
from rwkv_engine.ops.tiles import tile_reference, tiled_shape

GROUP, LARGEST = 256, 32767  # of the integers to which activations are quantised
SIZES = [(1, 1), (16, 64), (17, 65), (15, 63), (40, 300), (8, 2056), (33, 1100), (768, 3072)]  # N, K


@dataclass
class Quantized:
    """A random matrix (N, K) of int8 with its scales, those of the columns over three orders of magnitude."""

    q: Tensor
    scales: Tensor

    @classmethod
    def random(cls, n: int, k: int, seed: int = 0) -> Quantized:
        generator = torch.Generator().manual_seed(seed)
        q = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
        spread = torch.rand(n + k, generator=generator).mul(3).exp()
        spread[:n] /= 73 * 7 * math.sqrt(k)  # then W x is about 1
        return cls(q, spread)

    @property
    def tiles(self) -> Tensor:
        tiles = torch.empty(tiled_shape(*self.q.shape, torch.int8), dtype=torch.int8)
        tile_reference(self.q, tiles)
        return tiles

    @property
    def rows(self) -> Tensor:
        return self.q.t().contiguous()

    @property
    def exact(self) -> Tensor:
        return in_floats(self.q, self.scales.double())

    def bound(self, x: Tensor) -> Tensor:
        """How far W x may be off: half a step of each activation, and float32's sums of the groups."""
        n, k = self.q.shape
        scaled = torch.nn.functional.pad((x.double() * self.scales[n:]).abs(), (0, -k % GROUP))
        largest = scaled.unflatten(-1, (-1, GROUP)).amax(-1, keepdim=True).expand(-1, -1, GROUP).flatten(1)[:, :k]
        weights = self.q.double().abs() * self.scales[:n, None]
        rounding = (largest * (0.5 / LARGEST + 2.0**-22)) @ weights.t()
        return rounding + 2.0**-21 * math.ceil(k / GROUP) * (scaled[:, :k] @ weights.t()) + 1e-30


PRODUCTS = {
    "linear": lambda x, m: linear(x, m.tiles, len(m.q), m.scales),
    "linear_many of tiles": lambda x, m: linear_many(x, m.tiles, len(m.q), m.scales),
    "linear_many of rows": lambda x, m: linear_many(x, m.rows, len(m.q), m.scales),
}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 16, 40])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("product", PRODUCTS)
def test_products_are_off_by_half_a_step_of_an_activation_at_most(product, size, batch):
    matrix, x = Quantized.random(*size), numbers(1)(batch, size[1])
    error = (PRODUCTS[product](x, matrix).double() - x.double() @ matrix.exact.t()).abs()
    assert (error <= matrix.bound(x)).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_reference_keeps_activations_in_float32(size):
    matrix, x = Quantized.random(*size), numbers(1)(5, size[1])
    exact, sizes = x.double() @ matrix.exact.t(), x.double().abs() @ matrix.exact.abs().t()
    bound = 2.0**-23 * (3 + math.sqrt(size[1])) * sizes
    assert ((linear_reference(x, matrix.tiles, size[0], matrix.scales) - exact).abs() <= bound).all()
    assert ((linear_many_reference(x, matrix.rows, size[0], matrix.scales) - exact).abs() <= bound).all()


def test_the_largest_sums_fit():
    """Weights of 127 and equal activations give the largest integer sums that are possible."""
    q, x = torch.full((17, 4096), 127, dtype=torch.int8), torch.full((3, 4096), 5.0)
    matrix = Quantized(q, torch.ones(17 + 4096))
    for product in PRODUCTS.values():
        assert torch.allclose(product(x, matrix), torch.tensor(127.0 * 5 * 4096), rtol=1e-6)
        assert torch.allclose(product(-x, matrix), torch.tensor(-127.0 * 5 * 4096), rtol=1e-6)


def test_one_large_activation_leaves_digits_to_the_others():
    """What eight bits would not: the others are a fiftieth of it."""
    matrix, x = Quantized.random(40, 256), numbers(1)(1, 256)
    x[0, 7] = 50 * x.abs().max()
    others = x.clone()
    others[0, 7] = 0
    share = linear(x, matrix.tiles, 40, matrix.scales).double() - x[:, 7:8].double() @ matrix.exact[:, 7:8].t()
    expected = others.double() @ matrix.exact.t()
    assert (share - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("product", PRODUCTS)
def test_non_finite_values_stay_in_their_row_and_are_visible(product, value):
    matrix, x = Quantized.random(20, 300), numbers(1)(5, 300)
    clean = PRODUCTS[product](x, matrix)
    x[2, 280] = value
    y = PRODUCTS[product](x, matrix)
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_products_with_zeros_are_zero():
    matrix = Quantized.random(20, 300)
    nothing = Quantized(torch.zeros_like(matrix.q), matrix.scales)
    for product in PRODUCTS.values():
        assert (product(torch.zeros(3, 300), matrix) == 0).all()
        assert (product(torch.full((3, 300), 1e-38), matrix) == 0).all(), "below what has an inverse"
        assert (product(numbers(0)(3, 300), nothing) == 0).all()


def test_one_token_and_many_have_the_same_bits():
    """Integer sums do not depend on the order of additions, so the result of a row does not depend on the batch."""
    matrix, x = Quantized.random(77, 1100), numbers(1)(290, 1100)
    together = linear_many(x, matrix.tiles, 77, matrix.scales)
    rows = linear_many(x, matrix.rows, 77, matrix.scales)  # summed in parts, as a decoding step sums them
    torch.testing.assert_close(rows, together, rtol=1e-5, atol=1e-4)
    assert torch.equal(linear_many(x[5:8], matrix.rows, 77, matrix.scales), rows[5:8])
    for first, last in [(0, 1), (5, 8), (7, 23), (274, 290)]:
        assert torch.equal(linear(x[first:last], matrix.tiles, 77, matrix.scales), together[first:last])
        assert torch.equal(linear_many(x[first:last], matrix.tiles, 77, matrix.scales), together[first:last])
    threads = torch.get_num_threads()
    try:
        for n in range(1, 5):
            torch.set_num_threads(n)
            assert torch.equal(linear_many(x, matrix.tiles, 77, matrix.scales), together)
            assert torch.equal(linear(x[:16], matrix.tiles, 77, matrix.scales), together[:16])
    finally:
        torch.set_num_threads(threads)


def int8_half(kind: str, size: tuple[int, int, int], batch: int) -> tuple[Half, list[Tensor]]:
    """Arguments of a step, and the scales of its matrices."""
    c, a, f = size
    half = KINDS[kind][0](size, batch, torch.float32)
    if kind == "time":
        matrices = [Quantized.random(n, k, seed) for seed, (n, k) in enumerate([(a, c)] * 3 + [(c, a)])]
        half.arguments[9:13] = [m.tiles for m in matrices]
    else:
        matrices = [Quantized.random(n, k, seed) for seed, (n, k) in enumerate([(f, c), (c, c), (c, f)])]
        half.arguments[6:9] = [matrices[0].tiles, matrices[1].tiles, matrices[2].rows]
    return half, [m.scales for m in matrices]


STEP_SIZES = [(8, 8, 8), (16, 64, 17), (40, 56, 300), (33, 17, 65), (2056, 8, 24), (224, 224, 768)]  # C, A, F


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("size", STEP_SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_against_float32_activations(kind, size, batch):
    """The reference does not quantise activations. Their quantisation errors are at most 2^-16 of the largest of a
    group; relative to the largest output, the tolerance is this times the square root of a sum's length, for each of
    the products on the way to an output."""
    _, step, reference = KINDS[kind]
    half, scales = int8_half(kind, size, batch)
    (y, state), (exact_y, exact_state) = half.run(step, scales=scales), half.run(exactly(reference), scales=scales)
    bound = 4 * 2.0**-16 * math.sqrt(max(size))
    for got, exact in zip([y, *state], [exact_y, *exact_state], strict=True):
        assert (got - exact).abs().max() < bound * exact.abs().max().clamp_min(1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_do_not_depend_on_its_neighbours(kind):
    _, step, _ = KINDS[kind]
    half, scales = int8_half(kind, (40, 56, 300), 16)
    y, state = half.run(step, scales=scales)
    again, _ = half.run(step, scales=scales)
    assert torch.equal(again, y)
    for first, last in [(0, 1), (7, 8), (3, 6), (15, 16)]:
        rows = slice(first, last)
        some = Half([half.arguments[0][rows], *half.arguments[1:]], [t[rows] for t in half.state])
        y_some, state_some = some.run(step, scales=scales)
        assert torch.equal(y_some, y[rows])
        for one, all_ in zip(state_some, state, strict=True):
            assert torch.equal(one, all_[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_of_one_step_may_have_different_formats(kind):
    """The first one is float32 here, all others are int8."""
    _, step, reference = KINDS[kind]
    half, scales = int8_half(kind, (40, 56, 300), 3)
    at = {"time": 9, "channel": 6}[kind]
    half.arguments[at] = KINDS[kind][0]((40, 56, 300), 3, torch.float32).arguments[at]
    mixed = [None, *scales[1:]]
    (y, state), (exact_y, exact_state) = half.run(step, scales=mixed), half.run(exactly(reference), scales=mixed)
    bound = 4 * 2.0**-16 * math.sqrt(300)
    for got, exact in zip([y, *state], [exact_y, *exact_state], strict=True):
        assert (got - exact).abs().max() < bound * exact.abs().max().clamp_min(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    _, step, _ = KINDS[kind]
    half, scales = int8_half(kind, (16, 64, 17), 2)
    operator = getattr(torch.ops.rwkv_engine, step.__name__).default
    torch.library.opcheck(operator, (*half.arguments, *half.state, None, scales))
    matrix = Quantized.random(20, 40)
    for name, weight in (("linear", matrix.tiles), ("linear_many", matrix.rows)):
        operator = getattr(torch.ops.rwkv_engine, name).default
        torch.library.opcheck(operator, (torch.randn(3, 40), weight, 20, matrix.scales))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (None, "int8 weights need their scales"),
        (torch.ones(59), r"expected shape \[60\], got \[59\]"),
        (torch.ones(60).double(), "expected float32"),
        (torch.ones(120)[::2], "expected contiguous scales"),
    ],
    ids=str,
)
def test_scales_that_do_not_fit_are_refused(scales, message):
    matrix = Quantized.random(20, 40)
    for weight in (matrix.tiles, matrix.rows):
        with pytest.raises(RuntimeError, match=message):
            linear_many(torch.randn(3, 40), weight, 20, scales)
    with pytest.raises(RuntimeError, match=message):
        linear(torch.randn(3, 40), matrix.tiles, 20, scales)


def test_scales_belong_to_int8():
    with pytest.raises(RuntimeError, match="weight: scales belong to int8 and int4 weights, got Float"):
        linear_many(torch.randn(3, 40), torch.randn(40, 20), 20, torch.ones(60))
    with pytest.raises(RuntimeError, match="int8 weights need scales"):
        linear_many_reference(torch.randn(3, 40), torch.randn(40, 20), 20, torch.ones(60))
    half, scales = int8_half("time", (16, 64, 17), 2)
    with pytest.raises(RuntimeError, match="scales: expected none or those of 4 matrices, got 3"):
        half.run(KINDS["time"][1], scales=scales[:3])
    with pytest.raises(RuntimeError, match="key: int8 weights need their scales"):
        half.run(KINDS["time"][1])
