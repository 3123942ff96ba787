"""The most likely tokens, which draw_tokens gives at temperature 0."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine.ops import draw_tokens, most_likely

VALUES = st.sampled_from([-1.0, 0.0, 1.0, 2.0, float("nan"), float("inf"), -float("inf")])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(VALUES, min_size=5, max_size=5), max_size=4), st.sampled_from([torch.float32, torch.float64]))
def test_they_are_those_at_temperature_zero(rows, dtype):
    logits = torch.tensor(rows, dtype=dtype).reshape(-1, 5)
    zeros = torch.zeros(len(rows), dtype=torch.float64)
    expected = draw_tokens(logits, zeros, torch.zeros(len(rows), dtype=torch.int64), zeros + 1, zeros, zeros)
    assert torch.equal(most_likely(logits), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_among_equals(dtype):
    logits = torch.zeros(2, 5000, dtype=dtype)
    logits[1, [70, 4000]] = 3
    assert most_likely(logits).tolist() == [0, 70]


def test_opcheck():
    torch.library.opcheck(torch.ops.rwkv_engine.most_likely.default, (torch.randn(3, 9),))
