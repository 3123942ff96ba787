"""Products with plain matrices of 16 bits: their gradients, whatever the size of the activations."""

from __future__ import annotations

import pytest
import torch

from rwkv_engine.ops.linear_many import dense_product


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 7.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_are_those_of_the_rounded_numbers(dtype, size):
    """Rows brought below 1 by a power of two, of either sign, still have the gradient of the product."""
    generator = torch.Generator().manual_seed(0)
    x = (size * torch.randn(3, 16, generator=generator)).requires_grad_()
    weight = torch.randn(8, 16, generator=generator).to(dtype).requires_grad_()
    exact_x, exact_weight = (t.detach().float().requires_grad_() for t in (x, weight))
    outward = torch.randn(3, 8, generator=generator)
    dense_product(x, weight).backward(outward / size)
    (exact_x @ exact_weight.t()).backward(outward / size)
    bound = 4 * torch.finfo(dtype).eps  # the product's factors and its result are rounded once each
    for mine, exact in ((x.grad, exact_x.grad), (weight.grad.float(), exact_weight.grad)):
        assert (mine - exact).norm() < bound * exact.norm()
