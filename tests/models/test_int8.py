"""Rounding to int8: how far off, what is exact, the same bits always."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_engine.models.int8 import PIECE, quantized
from rwkv_engine.ops.int8 import in_floats

SHAPES = [(1, 1), (1, 65), (65, 1), (3, 64), (17, 129), (PIECE + 1, 70), (3 * PIECE, 33)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
EPSILON = 2**-24  # half the distance of two float32 numbers, relative


def random(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Weights whose rows and columns are of many sizes; the same in every version of torch."""
    rng = np.random.default_rng(seed)
    n, k = shape
    return torch.from_numpy(rng.normal(0, 1, (n, k)) * np.exp(rng.normal(0, 1, (n, 1)) + rng.normal(0, 1, (1, k))))


def scales_of(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, scales = quantized(weight)
    assert (q.dtype, scales.dtype) == (torch.int8, torch.float32)
    assert (q.shape, scales.shape) == (weight.shape, (sum(weight.shape),))
    rows, columns = scales.split(list(weight.shape))
    return q, rows, columns


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_weight_is_off_by_more_than_half_a_step(shape, dtype):
    for seed in range(3):
        weight = random(shape, seed).to(dtype)
        q, rows, columns = scales_of(weight)
        step = rows.double().unsqueeze(1) * columns.double()
        # Before it is rounded, a weight of at most 127 steps has been divided twice, by rounded scales.
        allowed = (0.5 + 127 * 4 * EPSILON) * step
        assert ((q * step - weight.double()).abs() <= allowed).all()
        got = in_floats(q, torch.cat([rows, columns])).double()
        assert ((got - weight.double()).abs() <= allowed + 3 * EPSILON * got.abs()).all()
        assert (q.abs().amax(dim=1) == 127).all(), "each row uses the whole range"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scales_and_numbers_are_those_of_the_equations(shape):
    """In float64 NumPy. Where a weight lies half way between two numbers, either will do."""
    weight = random(shape, 5).float()
    q, rows, columns = scales_of(weight)
    w = weight.double().numpy()
    r0 = np.sqrt((w**2).mean(axis=1, keepdims=True))
    expected_columns = np.sqrt(((w / r0) ** 2).mean(axis=0))
    expected_rows = np.abs(w / expected_columns).max(axis=1) / 127
    np.testing.assert_allclose(columns, expected_columns, rtol=2 * EPSILON)
    np.testing.assert_allclose(rows, expected_rows, rtol=5 * EPSILON)
    steps = w / expected_columns / expected_rows[:, None]
    assert (np.abs(q.numpy() - steps) < 0.5 + 127 * 8 * EPSILON).all()


def test_halves_are_rounded_to_even():
    """Every row and every column has the same numbers, so that all columns' scales are 1."""
    numbers = [127.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.5]
    weight = torch.tensor([np.roll(numbers, i).tolist() for i in range(8)])
    q, rows, columns = scales_of(weight)
    assert (columns == 1).all()
    assert (rows == 1).all()
    assert q[0].tolist() == [127, 0, 0, 2, -2, 2, -2, 4]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zeros_are_exact(shape):
    n, k = shape
    for rows, columns in ((slice(None), slice(None)), (slice(n // 2, None, 2), slice(0)), (slice(0), slice(k // 2, k))):
        weight = random(shape).float()
        weight[rows] = 0
        weight[:, columns] = 0
        q, of_rows, of_columns = scales_of(weight)
        assert torch.equal(in_floats(q, torch.cat([of_rows, of_columns])) == 0, q == 0)
        assert not q[weight == 0].any()
        assert (of_rows[(weight == 0).all(1)] == 1).all()
        assert (of_columns[(weight == 0).all(0)] == 1).all()
        assert (of_rows > 0).all()
        assert (of_columns > 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_constant_columns_are_exact_except_for_rounding(shape):
    n, k = shape
    column = random((1, k)).float()
    column[0, k // 2] = 0
    signs = torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], (n, k))).float()
    of_rows = random((n, 1)).float()
    for weight in (column.expand(n, k), column * signs, of_rows * column):
        got = in_floats(*quantized(weight))
        torch.testing.assert_close(got, weight, rtol=8 * EPSILON, atol=0)


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-30, 1e30, 1e36])
def test_numbers_of_any_size_give_numbers(size):
    for weight in (random((20, 30), 1).float(), torch.ones(20, 30)):
        weight = weight / weight.abs().max() * size
        weight[3], weight[:, 4] = 0, 0
        q, rows, columns = scales_of(weight)
        scales = torch.cat([rows, columns])
        assert scales.isfinite().all()
        assert (scales > 0).all()
        smallest = torch.finfo(torch.float32).tiny
        step = (rows.double().unsqueeze(1) * columns).clamp_min(smallest)
        assert ((in_floats(q, scales) - weight.double()).abs() <= 0.501 * step).all()


def test_near_the_largest_float32_scales_are_infinite():
    """And the loader refuses them: see test_loader."""
    weight = torch.zeros(300, 2)
    weight[0, 0], weight[1:, 1] = 3e38, 1  # an input that one row alone has
    assert quantized(weight)[1].isinf().any()


def test_the_same_bits_always():
    """However often, on however many threads, and as on the machine where this was written."""
    rng = np.random.default_rng(0)
    powers = 2.0 ** (rng.integers(-3, 3, (700, 1)) + rng.integers(-3, 3, (1, 300)))
    weight = torch.from_numpy(rng.integers(-1000, 1000, (700, 300)) * powers).float()
    threads = torch.get_num_threads()
    digests = set()
    try:
        for n in (1, 2, 3, threads):
            torch.set_num_threads(n)
            for given in (weight, weight.t().contiguous().t(), weight.double()):
                digest = hashlib.sha256()
                for tensor in quantized(given):
                    digest.update(tensor.numpy().tobytes())
                digests.add(digest.hexdigest()[:16])
    finally:
        torch.set_num_threads(threads)
    assert digests == {"f0e2920b83926bca"}


def test_the_input_is_not_modified():
    weight = random((300, 40))
    before = weight.clone()
    quantized(weight)
    assert torch.equal(weight, before)
