"""wkv7 and its gradient on the GPU against the recurrence in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import require_gpu
from gpu.devices import on
from ops.test_wkv7 import inputs

from rwkv_engine.ops import wkv7
from rwkv_engine.ops.wkv7 import wkv7_backward_reference, wkv7_reference

pytestmark = pytest.mark.gpu
require_gpu()
# Around the edges of blocks of rows, of the tokens that a block has at once and of the backward pass's chunks.
SHAPES = [
    *((1, 1, 1, n) for n in (1, 19, 32, 33, 64, 100, 128)),
    *((2, t, 3, 64) for t in (1, 2, 4, 5, 16, 17, 129)),
    (1, 129, 2, 32),
    (3, 129, 2, 128),
    (1, 1025, 2, 64),
    (5000, 1, 16, 8),
]


def largest(tensor):
    return tensor.abs().max().item()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_is_as_accurate_as_the_reference(shape, gpu):
    given = inputs(*shape)
    got = on("cpu", wkv7(*on(gpu, given)))
    for ours, plain, exact in zip(
        got, wkv7_reference(*given), wkv7_reference(*(x.double() for x in given)), strict=True
    ):
        assert largest(ours - exact) < 2 * largest(plain - exact) + 1e-6 * largest(exact)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward_kernel_is_as_accurate_as_the_reference(shape, gpu):
    given = inputs(*shape)
    grads = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) for x in (given[0], given[-1])]
    everything = [*grads, *given]
    got = on("cpu", torch.ops.rwkv_engine.wkv7_backward(*on(gpu, everything)))
    plain = wkv7_backward_reference(*everything)
    for ours, reference, exact in zip(
        got, plain, wkv7_backward_reference(*(x.double() for x in everything)), strict=True
    ):
        assert largest(ours - exact) < 2 * largest(reference - exact) + 1e-5 * largest(exact)


@pytest.mark.parametrize("tokens", [1, 3, 35])
def test_gradients(tokens, gpu):
    given = [x.requires_grad_() for x in on(gpu, inputs(1, tokens, 1 if tokens > 9 else 2, 3, torch.float64))]
    assert torch.autograd.gradcheck(wkv7, given, fast_mode=tokens > 9)


def test_small_decays_lose_nothing(gpu):
    """States are computed again, not by dividing the later ones."""
    given = inputs(1, 40, 2, 64, torch.float64)
    given[1] = given[1] * 1e-5
    leaves = [x.requires_grad_() for x in on(gpu, given)]
    expected = [x.requires_grad_() for x in on("cpu", given)]
    for tensors in (leaves, expected):
        y, state = wkv7(*tensors) if tensors is leaves else wkv7_reference(*tensors)
        (y.sum() + state.square().sum()).backward()
    for ours, exact in zip(leaves, expected, strict=True):
        torch.testing.assert_close(ours.grad.cpu(), exact.grad, rtol=1e-9, atol=1e-9)


def test_a_million_tokens(gpu):
    """A text this long in one call is the text in two, whose bits are those of short texts."""
    given = on(gpu, inputs(1, 1 << 10, 1, 32))
    tokens = [x.repeat(1, 1 << 10 if gpu != "cpu" else 4, 1, 1) for x in given[:-1]]
    y, state = wkv7(*tokens, given[-1])
    half = tokens[0].shape[1] // 2 + 1
    first, middle = wkv7(*(x[:, :half] for x in tokens), given[-1])
    second, end = wkv7(*(x[:, half:] for x in tokens), middle)
    assert y.isfinite().all()
    assert torch.equal(torch.cat([first, second], 1), y)
    assert torch.equal(end, state)


def test_rows_do_not_depend_on_the_batch_and_twice_is_the_same(gpu):
    given = on(gpu, inputs(16, 33, 2, 64))
    whole, again = wkv7(*given), wkv7(*given)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    grads = torch.ops.rwkv_engine.wkv7_backward(*whole, *given)
    grads_again = torch.ops.rwkv_engine.wkv7_backward(*whole, *given)
    assert all(torch.equal(one, other) for one, other in zip(grads, grads_again, strict=True))
    for i in (0, 5, 15):
        row = [x[i : i + 1] for x in given]
        alone = wkv7(*row)
        own = torch.ops.rwkv_engine.wkv7_backward(*alone, *row)
        for all_rows, one in zip((*whole, *grads), (*alone, *own), strict=True):
            if gpu != "cpu" or all_rows is whole[0] or all_rows is whole[1]:  # torch's products on the CPU differ
                assert torch.equal(all_rows[i : i + 1], one)


def test_nan_is_not_hidden(gpu):
    given = inputs(1, 9, 2, 64)
    given[3][0, 5, 1, 7] = torch.nan
    y, state = on("cpu", wkv7(*on(gpu, given)))
    assert y[0, :5].isfinite().all()
    assert y[0, 5:, 1, 7].isnan().all()
    assert state[0, 1, 7].isnan().all()
    y[0, 5:, 1, 7] = 0
    assert y.isfinite().all()


def test_strided_arguments_and_no_sequences(gpu):
    given = on(gpu, inputs(2, 5, 2, 32))
    wide = [x.repeat_interleave(2, -1)[..., ::2] for x in given]
    assert all(torch.equal(one, other) for one, other in zip(wkv7(*wide), wkv7(*given), strict=True))
    assert wkv7(*(x[:0] for x in given))[0].shape == (0, 5, 2, 32)


def test_opcheck(gpu):
    given = on(gpu, inputs(1, 3, 2, 8))
    torch.library.opcheck(torch.ops.rwkv_engine.wkv7_backward.default, [given[0], given[-1], *given])
    torch.library.opcheck(torch.ops.rwkv_engine.wkv7.default, [x.requires_grad_() for x in given])


def test_heads_that_are_too_large_are_refused(cuda):
    with pytest.raises(RuntimeError, match="at most 128 channels, got 129"):
        wkv7(*on(cuda, inputs(1, 1, 1, 129)))


@pytest.mark.parametrize("index", range(7))
def test_a_tensor_on_the_wrong_device_is_named(index, cuda):
    given = on(cuda, inputs(2, 3, 2, 8))
    given[index] = given[index].cpu()
    with pytest.raises(RuntimeError, match=r"wkv7: \w+: expected .*(cpu|cuda)"):
        wkv7(*given)
