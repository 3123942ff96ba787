"""Normalised embeddings against their definition."""

from __future__ import annotations

import pytest
import torch

from rwkv_engine.ops import embed_norm
from rwkv_engine.ops.embed_norm import Counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_they_are_those_of_the_definition(dtype):
    generator = torch.Generator().manual_seed(0)
    table = (torch.randn(20, 50, generator=generator) + 3).to(dtype)
    weight, bias = torch.randn(2, 50, generator=generator)
    tokens = torch.tensor([3, 19, 0, 3])
    rows = table.double()[tokens]
    exact = (rows - rows.mean(-1, True)) / (rows.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * weight + bias
    for function in (embed_norm, torch.ops.rwkv_engine.embed_norm):
        got = function(tokens, table, weight, bias, 1e-5)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=2e-6)


def test_their_tokens_are_counted():
    table, vector = torch.randn(3, 9), torch.randn(9)
    counted = Counted(torch.tensor([5, 2**40, 7, 0]), torch.tensor([1, 0]), torch.full((2,), -1))
    x = embed_norm(torch.tensor([2, 0]), table, vector, vector, 1e-5, counted)
    assert torch.equal(x, embed_norm(torch.tensor([2, 0]), table, vector, vector, 1e-5))
    assert counted.positions.tolist() == [6, 2**40 + 1, 7, 0]
    assert counted.after.tolist() == [2**40 + 1, 6]


def test_opcheck():
    arguments = (torch.tensor([1, 0]), torch.randn(3, 9), torch.randn(9), torch.randn(9), 1e-5)
    torch.library.opcheck(torch.ops.rwkv_engine.embed_norm.default, arguments)
    counted = (torch.zeros(4, dtype=torch.int64), torch.tensor([2, 0]), torch.zeros(2, dtype=torch.int64))
    torch.library.opcheck(torch.ops.rwkv_engine.embed_norm.default, (*arguments, *counted))
