"""Sums and quotients that are the same on every processor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_engine.models.int8 import quantized
from rwkv_engine.models.sums import divided


class Divisors(TorchDispatchMode):
    """What is divided by."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::div", "aten::div_"):
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


def test_int8_divides_by_no_python_number():
    """On GPUs torch would multiply by the reciprocal."""
    with Divisors() as divisors:
        quantized(torch.randn(300, 40))
    assert len(divisors.found) > 5
    assert all(isinstance(by, Tensor) for by in divisors.found)


def test_quotients():
    x = torch.randn(1000, dtype=torch.float64)
    assert torch.equal(divided(x, 127), x / 127)
