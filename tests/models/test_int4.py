"""Rounding to int4: how far off, what is exact, what the inputs' moments do, the same bits always."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from models.test_int8 import random
from torch import Tensor

from rwkv_engine.models.int4 import PIECE, int4_columns, quantized_int4
from rwkv_engine.ops.in_floats import rows_in_floats, tiles_in_floats

SHAPES = [(1, 1), (1, 65), (65, 1), (3, 64), (17, 129), (PIECE + 1, 70), (3 * PIECE, 33)]
FORMS = ("tiles", "input_major")
HALF = 2.0**-11  # half the distance of two float16 numbers, relative


def in_floats(weight: Tensor, form: str, moments: Tensor | None = None) -> Tensor:
    """What int4 makes of a matrix, float64."""
    values, columns = quantized_int4(weight, form, moments)
    assert (values.dtype, columns.dtype) == (torch.uint8, torch.float32)
    assert columns.shape == weight.shape[1:]
    assert (columns > 0).all()
    n, k = weight.shape
    if form == "tiles":
        return tiles_in_floats(values, n, k, columns.double())
    return rows_in_floats(values, n, columns.double())


def groups_of(weight: Tensor, form: str) -> list[Tensor]:
    """The groups of weights, each (M, 64) or, at the end of the rows, less wide."""
    return list((weight if form == "tiles" else weight.t()).split(64, dim=1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_of_a_group_is_at_most_that_of_plain_rounding(form, shape):
    """Plain rounding divides the range of a group into 15 steps; its scale and minimum are float16."""
    for seed in range(3):
        weight = random(shape, seed)
        for group, rounded in zip(groups_of(weight, form), groups_of(in_floats(weight, form), form), strict=True):
            plain, low, high = plainly(group)
            # Its numbers are off by the roundings of s (15 times) and of m, at most a share of the range and of |low|.
            rounding = HALF * ((high - low) + low.abs()) + 2.0**-22 * group.abs().amax(1)
            error, allowed = ((x - group).square().mean(1).sqrt() for x in (rounded, plain))
            assert (error <= allowed + 2 * rounding).all()


def plainly(group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups (M, L) rounded to 15 equal steps of their range, and the ends of the range."""
    low, high = group.aminmax(dim=1, keepdim=True)
    step = (high - low) / 15
    rounded = ((group - low) / step.clamp_min(1e-300)).round() * step + low
    return rounded, low.squeeze(1), high.squeeze(1)


def test_clipping_and_least_squares_reduce_the_error():
    """Plain rounding of normal numbers wastes steps on the few that are far from the others."""
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (256, 256)))
    plain = torch.stack([(plainly(group)[0] - group).square().mean() for group in groups_of(weight, "tiles")]).mean()
    for form in FORMS:
        error = (in_floats(weight, form) - weight).square().mean()
        assert error < 0.92 * plain


@pytest.mark.parametrize("factor", [64.0, 1 / 64])
def test_large_inputs_get_the_precision_they_need(factor):
    """8 inputs are `factor` times as large and their weights that much smaller: the same product, the same error."""
    rng = np.random.default_rng(0)
    weight, some = torch.from_numpy(rng.normal(0, 1, (256, 512))), torch.from_numpy(rng.permutation(512)[:8])
    even = torch.ones(512, dtype=torch.float64)
    moments, changed = even.clone(), weight.clone()
    moments[some], changed[:, some] = factor**2, changed[:, some] / factor
    expected = (in_floats(weight, "tiles", even) - weight).square().mean()
    error = ((in_floats(changed, "tiles", moments) - changed).square() * moments).mean()
    ignored = ((in_floats(changed, "tiles") - changed).square() * moments).mean()
    assert error < 1.3 * expected
    assert ignored > 10 * expected


def test_the_error_is_known_from_a_sample():
    rng = np.random.default_rng(1)
    weight = torch.from_numpy(rng.normal(0, 1, (700, 300)))
    moments = torch.from_numpy(np.exp(rng.normal(0, 1, 300)))
    for form in FORMS:
        _, error = int4_columns(weight, form, moments)
        exact = ((in_floats(weight, form, moments) - weight).square() * moments).sum(1).mean().item()
        signal = (weight.square() * moments).sum(1).mean().item()
        assert error.absolute == pytest.approx(exact, rel=0.2)
        assert error.relative == pytest.approx(exact / signal, rel=0.1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zeros_and_constant_groups_are_exact_except_for_rounding(form, shape):
    assert not in_floats(torch.zeros(shape), form).any()
    rows = random(shape).float()[:, :1] if form == "tiles" else random(shape).float()[:1]
    weight = rows.expand(shape)
    torch.testing.assert_close(in_floats(weight, form), weight.double(), rtol=HALF, atol=HALF * 2.0**-20)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30, 3e38])
def test_numbers_of_any_size_keep_their_precision(form, size):
    weight = random((40, 130), 1)
    weight = weight / weight.abs().max()
    expected = in_floats(weight, form)
    got = in_floats((weight * size).float(), form)
    # Sizes that are not powers of two shift the grid of float16 numbers.
    assert (got / size - expected).square().mean() < 0.2 * (expected - weight).square().mean()


@pytest.mark.parametrize("moments", ["zero", "nan", "inf", "tiny", "huge", "one alone"])
def test_moments_of_any_size_give_numbers(moments):
    weight = random((40, 130), 1).float()
    given = {
        "zero": torch.zeros(130),
        "nan": torch.full((130,), torch.nan),
        "inf": torch.full((130,), torch.inf),
        "tiny": torch.full((130,), 1e-300, dtype=torch.float64),
        "huge": torch.full((130,), 1e300, dtype=torch.float64),
        "one alone": torch.eye(130)[5],
    }[moments].double()
    for form in FORMS:
        got = in_floats(weight, form, given)
        assert got.isfinite().all()
        if moments in ("zero", "nan", "inf"):  # then they are not used
            assert torch.equal(got, in_floats(weight, form))


def test_the_same_bits_always():
    """However often, on however many threads, and as on the machine where this was written."""
    rng = np.random.default_rng(0)
    powers = 2.0 ** (rng.integers(-3, 3, (700, 1)) + rng.integers(-3, 3, (1, 300)))
    weight = torch.from_numpy(rng.integers(-1000, 1000, (700, 300)) * powers).float()
    moments = torch.from_numpy(2.0 ** rng.integers(-9, 9, 300))
    threads = torch.get_num_threads()
    digests = {form: set() for form in FORMS}
    try:
        for n in (1, 2, 3, threads):
            torch.set_num_threads(n)
            for given in (weight, weight.t().contiguous().t(), weight.double()):
                for form in FORMS:
                    digest = hashlib.sha256()
                    for tensor in quantized_int4(given, form, moments):
                        digest.update(tensor.numpy().tobytes())
                    digests[form].add(digest.hexdigest()[:16])
    finally:
        torch.set_num_threads(threads)
    assert digests == {"tiles": {"3808e446740e163c"}, "input_major": {"4b08843bd5dd10d1"}}


def test_a_matrix_in_pieces_is_the_same_matrix():
    """Without moments a row depends on the other ones only through the power of two of the largest weight."""
    weight = random((3 * PIECE + 5, 70), 2).float()
    weight[::PIECE, 0] = weight.abs().max()  # the same power of two for every part
    whole = in_floats(weight, "tiles")
    for first, last in pairwise((0, 7, PIECE + 3, len(weight))):
        part = weight[first:last].clone()
        part[0, 0] = weight.abs().max()
        assert torch.equal(in_floats(part, "tiles")[1:], whole[first + 1 : last])


def test_the_input_is_not_modified():
    weight = random((300, 40))
    before, moments = weight.clone(), torch.arange(40.0).double()
    for form in FORMS:
        quantized_int4(weight, form, moments)
    assert torch.equal(weight, before)
    assert torch.equal(moments, torch.arange(40.0).double())
