"""Counting tokens of a pool's sequences."""

from __future__ import annotations

import torch

from rwkv_engine.ops import advance_positions


def test_the_slots_count_one_more():
    for function in (advance_positions, torch.ops.rwkv_engine.advance_positions):
        positions, after = torch.tensor([5, 2**40, 7, 0]), torch.full((2,), -1)
        function(positions, torch.tensor([1, 0]), after)
        assert positions.tolist() == [6, 2**40 + 1, 7, 0]
        assert after.tolist() == [2**40 + 1, 6]


def test_opcheck():
    arguments = torch.zeros(4, dtype=torch.int64), torch.tensor([2, 0]), torch.zeros(2, dtype=torch.int64)
    torch.library.opcheck(torch.ops.rwkv_engine.advance_positions.default, arguments)
