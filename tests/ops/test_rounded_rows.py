"""The operators around products in 16 bits: their references against the operators that they replace."""

from __future__ import annotations

import pytest
import torch

from rwkv_engine.ops import activate_rows, gate_residual, ln_shift, ln_shift_rounded, residual_rows, scale_rows
from rwkv_engine.ops.ln_shift import largest_mixed
from rwkv_engine.ops.squared_relu import squared_relu_reference

DTYPES = [torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations_are_those_of_the_other_operators(dtype):
    x, gate = normal(9, 70, scale=500), normal(9, 70, seed=1, scale=5)
    x[3] = 0
    for own, activated in [(None, squared_relu_reference(x)), (gate, torch.sigmoid(gate) * x)]:
        rows, powers = activate_rows(x, own, dtype)
        halves, expected = scale_rows(activated)
        assert torch.equal(powers, expected)
        assert torch.equal(rows, (activated / powers).to(dtype))
        assert dtype != torch.float16 or torch.equal(rows, halves)


def test_residuals_are_those_of_the_gate():
    x, gate, y = (normal(9, 70, seed=i) for i in range(3))
    powers = 2.0 ** torch.arange(-4, 5).unsqueeze(-1)
    torch.testing.assert_close(residual_rows(x, gate, y, powers), gate_residual(x, gate, y * powers))
    assert torch.equal(residual_rows(x, None, y, powers), x + y * powers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [None, [3, 1, 5]], ids=str)
def test_shifts_are_rounded(dtype, lengths):
    x, shift = normal(1 if lengths else 3, 9, 40), normal(3, 40, seed=1)
    weight, bias, mixes = normal(40, seed=2), normal(40, seed=3), torch.rand(2, 40)
    expected, last = ln_shift(x, weight, bias, 1e-5, mixes, shift, lengths)
    mixed, end = ln_shift_rounded(x, weight, bias, 1e-5, mixes, shift, dtype, lengths)
    assert mixed.dtype == dtype
    # The kernel of the CPU rounds in another order than the reference before both round to 16 bits.
    torch.testing.assert_close(
        mixed.float(), expected, rtol=2.0**-7 if dtype == torch.bfloat16 else 2.0**-10, atol=1e-5
    )
    torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-6)


def test_no_number_is_above_the_bound():
    """The largest that LayerNorm can give is that of a row with one number that differs."""
    weight, bias, mixes = normal(50, seed=1), normal(50, seed=2), 3 * normal(2, 50, seed=3)
    one = torch.full((1, 51, 50), 0.0)
    one[0, torch.arange(50), torch.arange(50)] = 1e4
    mixed, _ = ln_shift(one, weight, bias, 1e-5, mixes, torch.zeros(1, 50))
    bound = largest_mixed(weight, bias, mixes)
    assert mixed.abs().max() <= bound
    same = largest_mixed(torch.ones(50), torch.zeros(50), torch.ones(1, 50))
    mixed, _ = ln_shift(one, torch.ones(50), torch.zeros(50), 1e-5, torch.ones(1, 50), torch.zeros(1, 50))
    assert 0.98 * same < mixed.max() <= same


def test_opcheck():
    ops, x = torch.ops.rwkv_engine, normal(4, 6)
    for gate in (None, normal(4, 6)):
        torch.library.opcheck(ops.activate_rows.default, (x, gate, torch.bfloat16))
        torch.library.opcheck(ops.residual_rows.default, (x, gate, x, torch.ones(4, 1)))
    row = torch.ones(6)
    arguments = (x.unsqueeze(0), row, row, 1e-5, torch.ones(3, 6), torch.zeros(1, 6), torch.float16)
    torch.library.opcheck(ops.ln_shift_rounded.default, arguments)
