"""Normalised embeddings against their definition."""

from __future__ import annotations

import pytest
import torch

from rwkv_engine.ops import embed_norm


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


def test_opcheck():
    arguments = (torch.tensor([1, 0]), torch.randn(3, 9), torch.randn(9), torch.randn(9), 1e-5)
    torch.library.opcheck(torch.ops.rwkv_engine.embed_norm.default, arguments)
