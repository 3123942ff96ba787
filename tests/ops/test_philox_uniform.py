"""Draws against Philox in plain integers, itself against the published vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from philox import philox4x32, uniform

from rwkv_engine.ops import philox_uniform
from rwkv_engine.ops.philox_uniform import as_int64, philox_uniform_reference

F, P = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
BITS = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([0, 1, F, F + 1, 2**63 - 1, 2**63, 2**64 - 1, 0xFFFF0000FFFF0000])
)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known-answer vectors published with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((F, F, F, F), (F, F), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (P[:4], P[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_known_answers(counter, key, expected):
    assert philox4x32(counter, key) == expected


@given(st.lists(st.tuples(BITS, BITS, BITS), max_size=20))
def test_kernel_and_reference_equal_plain_integers(rows):
    arguments = [torch.tensor([as_int64(row[i]) for row in rows], dtype=torch.int64) for i in range(3)]
    expected = [uniform(*row) for row in rows]
    for function in (philox_uniform, philox_uniform_reference):
        draws = function(*arguments)
        assert draws.dtype == torch.float64
        assert draws.tolist() == expected


def test_uniform_is_uniform_and_depends_on_every_argument():
    n = 20000
    draws = philox_uniform(torch.full((n,), 7), torch.zeros(n, dtype=torch.int64), torch.arange(n)).numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=100, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 160  # chi-square, 99 degrees of freedom: 1 in 10,000 above 157
    assert len({uniform(s, n, p) for s in (0, 1, 2**63) for n in (0, 1, 2**40) for p in (0, 1, 2**33)}) == 27


def test_rows_may_lie_apart():
    rows = torch.arange(12).view(4, 3)
    assert torch.equal(philox_uniform(*rows.unbind(1)), philox_uniform(*rows.t().contiguous()))


def test_opcheck():
    torch.library.opcheck(torch.ops.rwkv_engine.philox_uniform.default, (torch.arange(5),) * 3)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(2), r"seeds: expected int64 of shape \(B,\)"),
        (1, torch.zeros(3, dtype=torch.int64), r"samples: expected int64 .* got Long of shape \[3\]"),
        (2, torch.zeros(2, dtype=torch.int32), r"positions: expected int64 .* got Int of shape \[2\]"),
        (2, torch.zeros(2, 1, dtype=torch.int64), r"positions: expected int64 .* of shape \[2, 1\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(index, value, message):
    arguments = [torch.zeros(2, dtype=torch.int64)] * 3
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        philox_uniform(*arguments)
