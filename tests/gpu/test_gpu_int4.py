"""int4 weights on the GPU: the operators of decoding, also with matrices of other formats in the same step.

Activations are float32 there. On the CPU, which can run these tests too, they may be 16-bit integers, so the
tolerances are larger."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import require_gpu
from gpu.devices import on
from ops.int4_matrices import Int4Matrix
from ops.test_int4_weights import SIZES, STEP_SIZES, int4_half
from ops.test_int8_weights import int8_half
from ops.test_mixing4_steps import KINDS, Half, exactly, numbers
from torch import Tensor

from rwkv_engine.ops import linear
from rwkv_engine.ops.linear import linear_reference

pytestmark = pytest.mark.gpu
require_gpu()
MATRICES = [*SIZES, (2056, 8), (8192, 2048)]  # N, K
# The matrices of a step that are int8 instead, by their number.
OTHERS = {"time": [(), (1,), (0, 2), (3,)], "channel": [(), (0,), (1,), (2,)]}
CASES = [(kind, others) for kind in KINDS for others in OTHERS[kind]]


def rounding_of_activations(x: Tensor, matrix: Int4Matrix) -> Tensor:
    """What it may change in W x that activations times their column scales are rounded to 2^-16 of the largest."""
    scaled = x.double() * matrix.columns
    weights = (matrix.exact / matrix.columns).abs().sum(1)
    return scaled.abs().amax(1, keepdim=True) * 2.0**-16 * 1.01 * weights


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("size", MATRICES, ids=str)
def test_linear_against_float64(size, batch, gpu):
    matrix, x = Int4Matrix.random(*size, "tiles"), numbers(1)(batch, size[1])
    exact, sizes = x.double() @ matrix.exact.t(), x.double().abs() @ matrix.exact.abs().t()
    theirs = (linear_reference(x, matrix.packed, size[0], matrix.columns) - exact).abs() / sizes
    # One rounding for a weight and one for an activation times its scale, besides those of the sum.
    bound = (2 * theirs.max() + 2 * 2.0**-23) * sizes
    if gpu == "cpu":
        bound += rounding_of_activations(x, matrix)
    tiles, columns = matrix.packed.to(gpu), matrix.columns.to(gpu)
    y = linear(x.to(gpu), tiles, size[0], columns)
    assert ((y.cpu() - exact).abs() <= bound).all()
    for i in range(batch):
        assert torch.equal(linear(x[i : i + 1].to(gpu), tiles, size[0], columns)[0], y[i])


def mixed_half(kind: str, others: tuple[int, ...], size: tuple[int, int, int], batch: int) -> tuple[Half, list[Tensor]]:
    """Arguments of a step and its scales, with some matrices in int8."""
    half, scales, matrices = int4_half(kind, size, batch)
    int8, int8_scales = int8_half(kind, size, batch)
    first = 9 if kind == "time" else 6
    assert len(half.arguments) == first + len(matrices)
    for i in others:
        half.arguments[first + i], scales[i] = int8.arguments[first + i], int8_scales[i]
    return half, scales


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 16])
@pytest.mark.parametrize("size", [*STEP_SIZES, (768, 768, 3072)], ids=str)
@pytest.mark.parametrize(("kind", "others"), CASES, ids=str)
def test_a_step_against_the_reference(kind, others, size, batch, gpu):
    """Float32's errors only, no more than twice the reference's."""
    _, step, reference = KINDS[kind]
    half, scales = mixed_half(kind, others, size, batch)
    exact_y, exact_state = half.run(exactly(reference), scales=scales)
    theirs = half.run(reference, scales=scales)
    there = Half(on(gpu, half.arguments), on(gpu, half.state))
    ours = on("cpu", there.run(step, scales=on(gpu, scales)))
    floor = 4 * 2.0**-16 * math.sqrt(max(size)) if gpu == "cpu" else math.sqrt(max(16, size[0] / 4)) * 2.0**-24
    for got, near, exact in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], [exact_y, *exact_state], strict=True):
        largest = exact.abs().max().clamp_min(1)
        assert (got - exact).abs().max() < 2 * max((near - exact).abs().max(), floor * largest)


@pytest.mark.parametrize("size", [(40, 56, 100), (768, 768, 3072)], ids=str)
@pytest.mark.parametrize(("kind", "others"), CASES, ids=str)
def test_a_rows_bits_in_any_batch_at_any_time(kind, others, size, gpu):
    step = KINDS[kind][1]
    half, scales = mixed_half(kind, others, size, 16)
    half, scales = Half(on(gpu, half.arguments), on(gpu, half.state)), on(gpu, scales)
    y, state = half.run(step, scales=scales)
    again_y, again_state = half.run(step, scales=scales)
    assert torch.equal(y, again_y)
    assert all(torch.equal(a, b) for a, b in zip(state, again_state, strict=True))
    for first, last in [*((i, i + 1) for i in range(16)), (3, 5), (1, 4), (2, 10), (0, 15)]:
        x, *rest = half.arguments
        part = Half([x[first:last], *rest], [t[first:last] for t in half.state])
        y_part, state_part = part.run(step, scales=scales)
        assert torch.equal(y_part, y[first:last])
        assert all(torch.equal(a, b[first:last]) for a, b in zip(state_part, state, strict=True))


def test_nan_stays_in_its_row(gpu):
    matrix, x = Int4Matrix.random(20, 300, "tiles"), numbers(1)(4, 300)
    x[2, 280] = torch.nan
    y = linear(*on(gpu, [x, matrix.packed]), 20, matrix.columns.to(gpu)).cpu()
    assert y[2].isnan().all()
    assert y[[0, 1, 3]].isfinite().all()
