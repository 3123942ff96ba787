"""int4 weights in every operator: references against float64, compiled kernels against references."""

from __future__ import annotations

import math

import pytest
import torch
from ops.int4_matrices import Int4Matrix
from ops.test_mixing4_steps import KINDS, Half, exactly, numbers
from torch import Tensor

from rwkv_engine.ops import linear, linear_many, tile, untile
from rwkv_engine.ops.int4 import int4_tiles_shape
from rwkv_engine.ops.linear import linear_reference
from rwkv_engine.ops.linear_many import linear_many_reference

SIZES = [(1, 1), (16, 64), (17, 65), (40, 300), (33, 1100)]  # N, K
STEP_SIZES = [(8, 8, 8), (16, 64, 17), (40, 56, 300), (150, 17, 65)]  # C, A, F


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_are_those_of_the_weights(size):
    n, k = size
    tiles, rows = Int4Matrix.random(n, k, "tiles"), Int4Matrix.random(n, k, "input_major")
    x = numbers(1)(5, k)
    for matrix, product in ((tiles, linear_reference), (tiles, linear_many_reference), (rows, linear_many_reference)):
        exact, sizes = x.double() @ matrix.exact.t(), x.double().abs() @ matrix.exact.abs().t()
        # A weight is the sum of two numbers of up to 12 times its size here.
        bound = 2.0**-23 * (40 + math.sqrt(k)) * sizes + 1e-6 * matrix.columns.max()
        assert ((product(x, matrix.packed, n, matrix.columns) - exact).abs() <= bound).all()


def int4_half(kind: str, size: tuple[int, int, int], batch: int) -> tuple[Half, list[Tensor], list[Int4Matrix]]:
    """Arguments of a step, the scales of its matrices, and the matrices."""
    c, a, f = size
    half = KINDS[kind][0](size, batch, torch.float32)
    if kind == "time":
        forms, first = [(a, c, "tiles")] * 3 + [(c, a, "tiles")], 9
    else:
        forms, first = [(f, c, "tiles"), (c, c, "tiles"), (c, f, "input_major")], 6
    matrices = [Int4Matrix.random(*form, seed=seed) for seed, form in enumerate(forms)]
    for matrix in matrices:
        matrix.columns = torch.rand(len(matrix.columns)) + 0.5  # the inputs are about 1
    half.arguments[first : first + len(matrices)] = [m.packed for m in matrices]
    return half, [m.columns for m in matrices], matrices


@pytest.mark.parametrize("size", STEP_SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_with_the_weights_in_floats(kind, size):
    """The same step with float32 tiles of the same weights has float32's errors, on the way through two products."""
    _, _, reference = KINDS[kind]
    half, scales, matrices = int4_half(kind, size, 3)
    floats, first = Half([*half.arguments], half.state), 9 if kind == "time" else 6
    for i, matrix in enumerate(matrices):
        weight = matrix.exact.float()
        if matrix.along_inputs:
            packed = torch.empty(-(-len(weight) // 16), -(-weight.shape[1] // 16), 16, 16, 1)
            tile(weight, packed)
        else:
            packed = weight.t().contiguous()
        floats.arguments[first + i] = packed
    (y, state), (exact_y, exact_state) = half.run(exactly(reference), scales=scales), floats.run(exactly(reference))
    for got, exact in zip([y, *state], [exact_y, *exact_state], strict=True):
        assert (got - exact).abs().max() <= 2.0**-20 * math.sqrt(max(size)) * exact.abs().max().clamp_min(1)


def test_other_tiles_are_not_int4():
    tiles = torch.zeros(int4_tiles_shape(16, 64), dtype=torch.uint8)
    for call in (lambda: untile(tiles, 16, 64), lambda: tile(torch.zeros(16, 64, dtype=torch.uint8), tiles)):
        with pytest.raises(RuntimeError, match="int4 weights have other tiles"):
            call()


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("size", STEP_SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_against_float32_activations(kind, size, batch):
    """Beside tiles activations are quantised as for int8, so the bound is that of tests/ops/test_int8_weights.py."""
    _, step, reference = KINDS[kind]
    half, scales, _ = int4_half(kind, size, batch)
    (y, state), (exact_y, exact_state) = half.run(step, scales=scales), half.run(exactly(reference), scales=scales)
    bound = 4 * 2.0**-16 * math.sqrt(max(size))
    for got, exact in zip([y, *state], [exact_y, *exact_state], strict=True):
        assert (got - exact).abs().max() < bound * exact.abs().max().clamp_min(1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_do_not_depend_on_its_neighbours(kind):
    _, step, _ = KINDS[kind]
    half, scales, _ = int4_half(kind, (150, 56, 700), 16)
    y, state = half.run(step, scales=scales)
    for first, last in [(0, 1), (7, 8), (3, 6), (15, 16)]:
        rows = slice(first, last)
        some = Half([half.arguments[0][rows], *half.arguments[1:]], [t[rows] for t in half.state])
        y_some, state_some = some.run(step, scales=scales)
        assert torch.equal(y_some, y[rows])
        assert all(torch.equal(one, all_[rows]) for one, all_ in zip(state_some, state, strict=True))


@pytest.mark.parametrize(("form", "products"), [("tiles", (linear, linear_many)), ("input_major", (linear_many,))])
def test_a_products_bits_do_not_depend_on_the_rows_or_on_threads(form, products):
    matrix = Int4Matrix.random(150, 700, form)
    x = numbers(2)(40, 700)
    together = linear_many(x, matrix.packed, 150, matrix.columns)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            assert torch.equal(linear_many(x, matrix.packed, 150, matrix.columns), together)
            assert torch.equal(linear_many(x[5:18], matrix.packed, 150, matrix.columns), together[5:18])
            for product in products:
                one = product(x[7:8], matrix.packed, 150, matrix.columns)
                assert torch.equal(one, product(x[:16], matrix.packed, 150, matrix.columns)[7:8])
    finally:
        torch.set_num_threads(threads)
