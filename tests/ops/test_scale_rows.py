"""Rows as float16 and powers of two, against exact arithmetic."""

from __future__ import annotations

import pytest
import torch

from rwkv_engine.ops import scale_rows

SIZES = [1e-44, 1e-38, 1e-20, 1e-3, 1.0, 65504.0, 1e20, 3e38]


@pytest.mark.parametrize("with_columns", [False, True])
def test_rows_are_below_one_and_rounded_once(with_columns):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(SIZES), 300, generator=generator).clamp(-1, 1) * torch.tensor(SIZES).unsqueeze(-1)
    columns = torch.rand(300, generator=generator) if with_columns else None
    halves, powers = scale_rows(x, columns)
    assert (halves.dtype, halves.shape, powers.shape) == (torch.float16, x.shape, (len(SIZES), 1))
    assert (torch.frexp(powers).mantissa == 0.5).all(), "powers of two"
    exact = x if columns is None else x * columns
    assert torch.equal(halves, (exact.double() / powers.double()).half())
    largest = halves.double().abs().amax(-1)
    assert (largest[1:-1] >= 0.5).all()
    assert (largest[:-1] <= 1).all()
    assert largest[-1] < 4, "no power is larger than 2^126"


def test_zeros_and_what_is_not_finite():
    x = torch.ones(4, 3)
    x[0] = 0
    x[1, 1], x[2, 1] = torch.nan, torch.inf
    halves, powers = scale_rows(x)
    assert powers[[0, 2], 0].tolist() == [1, 1]
    assert halves[0].tolist() == [0, 0, 0]
    assert halves[1, 1].isnan()
    assert halves[2].tolist() == [1, torch.inf, 1]
    assert halves[3].tolist() == [0.5] * 3
    assert powers[3].item() == 2


def test_opcheck():
    torch.library.opcheck(torch.ops.rwkv_engine.scale_rows.default, (torch.randn(3, 9), torch.rand(9)))
    torch.library.opcheck(torch.ops.rwkv_engine.scale_rows.default, (torch.randn(3, 9),))
