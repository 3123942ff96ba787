"""wkv7 against its definition in float64, and its gradients against difference quotients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rwkv_engine.ops import wkv7
from rwkv_engine.ops.wkv7 import wkv7_backward_reference, wkv7_reference


def inputs(batch, tokens, heads, n, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=dtype)

    shape = batch, tokens, heads, n
    w = torch.exp(-0.6065 * torch.sigmoid(3 * normal(*shape)))
    kappa = F.normalize(normal(*shape), dim=-1)
    r, k, v = (normal(*shape) for _ in range(3))
    return [r, w, k, v, kappa, torch.sigmoid(normal(*shape)), normal(batch, heads, n, n)]


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (2, 5, 3, 32), (3, 129, 2, 64), (1, 2, 1, 128), (1, 3, 2, 19)])
def test_it_is_the_reference_in_float64(shape):
    given = inputs(*shape)
    kept = [x.clone() for x in given]
    y, state = wkv7(*given)
    exact_y, exact = wkv7_reference(*(x.double() for x in given))
    assert all(torch.equal(one, other) for one, other in zip(given, kept, strict=True))
    ours = (y - exact_y).abs().max(), (state - exact).abs().max()
    plain_y, plain = wkv7_reference(*given)
    allowed = (plain_y - exact_y).abs().max(), (plain - exact).abs().max()
    assert all(own <= 2 * bound + 1e-6 for own, bound in zip(ours, allowed, strict=True))


def test_a_row_does_not_depend_on_the_batch_nor_on_where_a_chunk_ends():
    given = inputs(5, 33, 2, 32)
    y, state = wkv7(*given)
    own, alone = wkv7(*(x[2:3] for x in given))
    assert torch.equal(y[2:3], own)
    assert torch.equal(state[2:3], alone)
    one, middle = wkv7(*(x[:, :20] for x in given[:-1]), given[-1])
    two, end = wkv7(*(x[:, 20:] for x in given[:-1]), middle)
    assert torch.equal(torch.cat([one, two], 1), y)
    assert torch.equal(end, state)


def test_texts_of_different_lengths_are_those_texts():
    lengths = [3, 3, 1, 7]
    given = inputs(1, 14, 2, 32)
    given[-1] = inputs(4, 1, 2, 32)[-1]
    y, state = wkv7(*given, lengths=lengths)
    parts = zip(*(x.split(lengths, 1) for x in given[:-1]), strict=True)
    for i, (part, own) in enumerate(zip(parts, y.split(lengths, 1), strict=True)):
        alone, after = wkv7(*part, given[-1][i : i + 1])
        assert torch.equal(own, alone)
        assert torch.equal(state[i : i + 1], after)


def test_zero_keys_and_strided_inputs():
    given = inputs(2, 4, 2, 32)
    given[4] = torch.zeros_like(given[4])  # what a key of zeros is normalised to
    wide = [x.repeat_interleave(2, -1)[..., ::2] for x in given]
    for one, other in zip(wkv7(*wide), wkv7(*given), strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("tokens", [1, 3, 35])
def test_gradients(tokens):
    given = [x.requires_grad_() for x in inputs(1, tokens, 1 if tokens > 9 else 2, 3, torch.float64)]
    assert torch.autograd.gradcheck(wkv7, given, fast_mode=tokens > 9)


def test_there_is_no_second_derivative():
    given = [x.requires_grad_() for x in inputs(1, 2, 1, 3, torch.float64)]
    y, _ = wkv7(*given)
    once = torch.autograd.grad(y.square().sum(), given, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        once[0].sum().backward()


@pytest.mark.parametrize("shape", [(1, 1, 2, 8), (2, 37, 2, 19), (1, 17, 1, 64)], ids=str)
def test_the_backward_reference_is_the_gradient_of_the_forward_one(shape):
    leaves = [x.requires_grad_() for x in inputs(*shape, torch.float64)]
    outputs = wkv7_reference(*leaves)
    grads = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) for x in outputs]
    expected = torch.autograd.grad(outputs, leaves, grads)
    for got, exact in zip(wkv7_backward_reference(*grads, *(x.detach() for x in leaves)), expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-11, atol=1e-11)


def test_opcheck():
    given = inputs(1, 3, 2, 8)
    torch.library.opcheck(torch.ops.rwkv_engine.wkv7.default, [x.requires_grad_() for x in given])
    grads = [x.detach() for x in (given[0], given[-1], *given)]
    torch.library.opcheck(torch.ops.rwkv_engine.wkv7_backward.default, grads)
