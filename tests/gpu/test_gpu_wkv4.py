"""wkv4 on the GPU, a scan over chunks, against the recurrence in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import require_gpu
from gpu.devices import on
from ops.test_wkv4 import SIZES, error, make_inputs, sums

from rwkv_engine.core.rwkv4 import EMPTY_MAX
from rwkv_engine.ops.wkv4 import wkv4, wkv4_backward_reference, wkv4_reference

pytestmark = pytest.mark.gpu
require_gpu()
CHUNK = 32  # kWkv4Chunk of kernels/cuda/wkv4.h
# Around the edges of chunks and of blocks of channels, and as long as prefill asks for.
LENGTHS = [(2, CHUNK - 1, 65), (1, CHUNK, 64), (3, CHUNK + 1, 63), (1, 8 * CHUNK, 130), (1, 2048, 40)]


@pytest.mark.parametrize("size", [*SIZES, *LENGTHS], ids=str)
def test_kernel_is_as_accurate_as_the_reference(size, gpu):
    inputs = make_inputs(*size)
    y, *state = on("cpu", wkv4(*on(gpu, inputs)))
    y_ref, *state_ref = wkv4_reference(*inputs)
    y_exact, *state_exact = wkv4_reference(*[t.double() for t in inputs])
    assert error([y], [y_exact]) < 2 * error([y_ref], [y_exact]) + 1e-6
    assert error(sums(*state), sums(*state_exact)) < 2 * error(sums(*state_ref), sums(*state_exact)) + 1e-6


@pytest.mark.parametrize("size", [*SIZES, *LENGTHS], ids=str)
def test_backward_kernel_is_as_accurate_as_the_reference(size, gpu):
    inputs = make_inputs(*size)
    outputs = wkv4_reference(*inputs)
    grads = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in outputs]
    got = on("cpu", torch.ops.rwkv_engine.wkv4_backward(*on(gpu, [*grads, *inputs])))
    reference = wkv4_backward_reference(*grads, *inputs)
    exact = wkv4_backward_reference(*[t.double() for t in (*grads, *inputs)])
    for g, r, e in zip(got, reference, exact, strict=True):
        scale = e.abs().max().item() + 1e-30
        assert error([g], [e]) / scale < 2 * error([r], [e]) / scale + 1e-5


@pytest.mark.parametrize("size", [(2, 5, 3), (1, 1, 17), (1, CHUNK + 2, 3)], ids=str)
def test_gradcheck(size, gpu):
    leaves = [t.requires_grad_() for t in on(gpu, make_inputs(*size, torch.float64))]
    assert torch.autograd.gradcheck(wkv4, leaves)


def test_state_in_and_out_at_edges_of_chunks_is_the_whole_bit_for_bit(gpu):
    decay, first, k, v, *state = on(gpu, make_inputs(3, 4 * CHUNK + 5, 37))
    y, *end = wkv4(decay, first, k, v, *state)
    pieces = []
    for part in (slice(0, CHUNK), slice(CHUNK, 3 * CHUNK), slice(3 * CHUNK, 4 * CHUNK + 5)):
        piece, *state = wkv4(decay, first, k[:, part], v[:, part], *state)
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces, dim=1), y)
    assert all(torch.equal(a, b) for a, b in zip(state, end, strict=True))


def test_rows_do_not_depend_on_the_batch_and_twice_is_the_same(gpu):
    inputs = on(gpu, make_inputs(16, 3 * CHUNK + 1, 100))
    whole, again = wkv4(*inputs), wkv4(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    for i in (0, 5, 15):
        row = wkv4(*inputs[:2], *[t[i : i + 1] for t in inputs[2:]])
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(whole, row, strict=True))
    grads = [torch.ones_like(t) for t in whole]
    one, two = (torch.ops.rwkv_engine.wkv4_backward(*grads, *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_first_token_is_v_exactly(gpu):
    decay, first, k, v, *_ = on(gpu, make_inputs(2, 1, 24))
    zero = torch.zeros(2, 24, device=gpu)
    y, *_ = wkv4(decay, first, k, v, zero, zero, torch.full_like(zero, EMPTY_MAX))
    assert torch.equal(y, v)


@pytest.mark.parametrize("k_value", [-1e4, -80.0, 80.0, 1e4])
def test_large_exponents_stay_finite_and_right(k_value, gpu):
    decay, first, k, v, *state = make_inputs(2, 2 * CHUNK + 3, 24)
    inputs = [decay, first, k + k_value, v, *state]
    y, *end = on("cpu", wkv4(*on(gpu, inputs)))
    y_exact, *_ = wkv4_reference(*[t.double() for t in inputs])
    y_ref, *_ = wkv4_reference(*inputs)
    assert all(torch.isfinite(t).all() for t in (y, *end))
    assert error([y], [y_exact]) < 2 * error([y_ref], [y_exact]) + 1e-6


def test_nan_is_not_hidden(gpu):
    inputs = make_inputs(1, 2 * CHUNK, 20)
    inputs[2][0, 5, 7] = torch.nan
    y = wkv4(*on(gpu, inputs))[0].cpu()
    assert y[0, :5].isfinite().all()
    assert y[0, 5:, 7].isnan().all()
    assert y[0, :, [*range(7), *range(8, 20)]].isfinite().all()


def test_strided_arguments(gpu):
    decay, first, k, v, *state = on(gpu, make_inputs(2, 40, 40))
    expected = wkv4(*[t[..., ::2].contiguous() for t in (decay, first, k, v)], *[t[:, ::2].contiguous() for t in state])
    got = wkv4(*[t[..., ::2] for t in (decay, first, k, v)], *[t[:, ::2] for t in state])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_opcheck(gpu):
    leaves = on(gpu, make_inputs(2, CHUNK + 1, 18))
    torch.library.opcheck(torch.ops.rwkv_engine.wkv4.default, [t.requires_grad_() for t in leaves])


@pytest.mark.parametrize("index", range(7))
def test_a_tensor_on_the_wrong_device_is_named(index, cuda):
    inputs = on(cuda, make_inputs(2, 3, 8))
    inputs[index] = inputs[index].cpu()
    with pytest.raises(RuntimeError, match=r"wkv4: \w+: expected .*(cpu|cuda)"):
        wkv4(*inputs)
