"""Products with normalised rows against their definition."""

from __future__ import annotations

import pytest
import torch
from ops.test_prefill_ops import tiled

from rwkv_engine import RWKV
from rwkv_engine.core.state import State
from rwkv_engine.ops import linear, norm_linear

EPS = 1e-5


def arguments(rows: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 70, generator=generator) + 3
    return x, *torch.randn(2, 70, generator=generator), torch.randn(33, 70, generator=generator)


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_they_are_those_of_the_definition(rows):
    x, weight, bias, matrix = arguments(rows)
    exact = x.double()
    exact = (exact - exact.mean(-1, True)) / (exact.var(-1, unbiased=False, keepdim=True) + EPS).sqrt()
    exact = (exact * weight + bias) @ matrix.double().t()
    for function in (norm_linear, torch.ops.rwkv_engine.norm_linear):
        got = function(x, weight, bias, EPS, tiled(matrix), 33)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)


def test_opcheck():
    x, weight, bias, matrix = arguments(3)
    torch.library.opcheck(torch.ops.rwkv_engine.norm_linear.default, (x, weight, bias, EPS, tiled(matrix), 33))


def test_a_step_ends_with_it():
    model = RWKV.from_pretrained("tales", "cpu fp16").engine.model
    state = State.initial(model.config)
    x, _ = model.read(torch.tensor([[5]]), state)
    norm, head = model.ln_out, model.head
    expected = linear(norm(x[:, -1]), head.tiles, head.out_features, head.scales)
    assert torch.equal(head.after(norm, x[:, -1]), expected)
    assert torch.allclose(model(torch.tensor([[5]]), state)[0], expected, atol=1e-3)
