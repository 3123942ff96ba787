from __future__ import annotations

import pytest
import torch

from rwkv_engine.core.rwkv4 import EMPTY_MAX
from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops.wkv4 import wkv4, wkv4_backward_reference, wkv4_reference

SIZES = [(1, 1, 8), (1, 2, 1), (3, 129, 19), (2, 2, 2056), (1, 129, 8), (16, 5, 32)]
needs_kernels = pytest.mark.skipif(
    cpu_kernels.status().kind == "reference", reason=f"no compiled kernels here: {cpu_kernels.status().reason}"
)


def make_inputs(B, T, C, dtype=torch.float32, seed=0, scale=2.0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    inputs = [
        -torch.exp(normal(C)),
        normal(C),
        scale * normal(B, T, C),
        normal(B, T, C),
        normal(B, C),
        torch.rand(B, C, generator=g, dtype=torch.float64) + 0.1,
        normal(B, C),
    ]
    return [t.to(dtype) for t in inputs]


def sums(num, den, max):
    """States compare as the average and the logarithm of the weight: max alone may drift."""
    return num / den, torch.log(den) + max


def error(got, exact):
    return max((g.double() - e).abs().max().item() for g, e in zip(got, exact, strict=True))


@needs_kernels
@pytest.mark.parametrize("size", SIZES)
def test_kernel_is_as_accurate_as_the_reference(size):
    inputs = make_inputs(*size)
    y, *state = wkv4(*inputs)
    y_ref, *state_ref = wkv4_reference(*inputs)
    y_exact, *state_exact = wkv4_reference(*[t.double() for t in inputs])
    limit = 2 * error([y_ref], [y_exact]) + 1e-6
    assert error([y], [y_exact]) < limit
    assert error(sums(*state), sums(*state_exact)) < 2 * error(sums(*state_ref), sums(*state_exact)) + 1e-6


@needs_kernels
@pytest.mark.parametrize("size", SIZES)
def test_backward_kernel_is_as_accurate_as_the_reference(size):
    inputs = make_inputs(*size)
    outputs = wkv4_reference(*inputs)
    grads = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in outputs]
    got = torch.ops.rwkv_engine.wkv4_backward(*grads, *inputs)
    reference = wkv4_backward_reference(*grads, *inputs)
    exact = wkv4_backward_reference(*[t.double() for t in (*grads, *inputs)])
    for g, r, e in zip(got, reference, exact, strict=True):
        scale = e.abs().max().item() + 1e-30
        assert error([g], [e]) / scale < 2 * error([r], [e]) / scale + 1e-5


def test_backward_reference_is_autograd_through_the_reference():
    leaves = [t.requires_grad_() for t in make_inputs(2, 7, 5, torch.float64)]
    outputs = wkv4_reference(*leaves)
    grads = [torch.randn(t.shape, generator=torch.Generator().manual_seed(2), dtype=t.dtype) for t in outputs]
    expected = torch.autograd.grad(outputs, leaves, grads)
    with torch.no_grad():
        got = wkv4_backward_reference(*grads, *leaves)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def gradcheck(size):
    leaves = [t.requires_grad_() for t in make_inputs(*size, torch.float64)]
    return torch.autograd.gradcheck(wkv4, leaves)


@needs_kernels
@pytest.mark.parametrize("size", [(2, 5, 3), (1, 1, 17), (2, 3, 16)])
def test_gradcheck(size):
    assert gradcheck(size)


@pytest.mark.slow
def test_gradcheck_without_the_library(run_python):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_wkv4 as tests\n"
        "assert tests.cpu_kernels.status().kind == 'reference'\n"
        "assert tests.gradcheck((2, 5, 3)); print('checked')"
    )
    result = run_python(code, str(__file__).rsplit("/", 1)[0], RWKV_ENGINE_KERNELS="reference")
    assert result.stdout == "checked\n", result.stderr


def test_first_token_is_v_exactly():
    decay, first, k, v, *_ = make_inputs(2, 1, 24)
    zero = torch.zeros(2, 24)
    y, *_ = wkv4(decay, first, k, v, zero, zero, torch.full_like(zero, EMPTY_MAX))
    assert torch.equal(y, v)


@pytest.mark.parametrize("k_value", [-1e4, -80.0, 80.0, 1e4])
def test_large_exponents_stay_finite_and_right(k_value):
    decay, first, k, v, num, den, max = make_inputs(2, 20, 24)
    k = k + k_value
    y, *state = wkv4(decay, first, k, v, num, den, max)
    y_exact, *_ = wkv4_reference(*[t.double() for t in (decay, first, k, v, num, den, max)])
    assert all(torch.isfinite(t).all() for t in (y, *state))
    y_ref, *_ = wkv4_reference(decay, first, k, v, num, den, max)
    assert error([y], [y_exact]) < 2 * error([y_ref], [y_exact]) + 1e-6


def test_nan_is_not_hidden():
    inputs = make_inputs(1, 3, 20)
    inputs[2][0, 1, 7] = float("nan")
    y, *_ = wkv4(*inputs)
    assert y[0, 0].isfinite().all()
    assert y[0, 1:, 7].isnan().all()


def test_state_in_and_out_whole_equals_parts_bit_for_bit():
    decay, first, k, v, *state = make_inputs(3, 50, 37)
    y, *end = wkv4(decay, first, k, v, *state)
    pieces = []
    for part in (slice(0, 1), slice(1, 2), slice(2, 33), slice(33, 50)):
        piece, *state = wkv4(decay, first, k[:, part], v[:, part], *state)
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces, dim=1), y)
    assert all(torch.equal(a, b) for a, b in zip(state, end, strict=True))


def test_rows_do_not_depend_on_the_batch_or_on_threads():
    inputs = make_inputs(16, 40, 100)
    whole = wkv4(*inputs)
    row = wkv4(*inputs[:2], *[t[5:6] for t in inputs[2:]])
    assert all(torch.equal(a[5:6], b) for a, b in zip(whole, row, strict=True))
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            assert all(torch.equal(a, b) for a, b in zip(whole, wkv4(*inputs), strict=True))
    finally:
        torch.set_num_threads(threads)


def test_strided_and_aliased_arguments():
    decay, first, k, v, num, den, max = make_inputs(2, 9, 40)
    expected = wkv4(
        decay[::2].contiguous(),
        first[::2].contiguous(),
        k[..., ::2].contiguous(),
        v[..., ::2].contiguous(),
        *[t[:, ::2].contiguous() for t in (num, den, max)],
    )
    got = wkv4(decay[::2], first[::2], k[..., ::2], v[..., ::2], *[t[:, ::2] for t in (num, den, max)])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    before = [t.clone() for t in (k, num, den, max)]
    aliased = wkv4(decay, first, k, k, num, num.abs() + 1, num)
    assert all(torch.equal(a, b) for a, b in zip((k, num, den, max), before, strict=True))
    assert not any(a.data_ptr() == b.data_ptr() for a in aliased for b in (k, num))


@pytest.mark.slow
@pytest.mark.parametrize("strided", [False, True])
def test_opcheck(strided):
    leaves = make_inputs(2, 3, 18)
    if strided:
        leaves = [t.mT.contiguous().mT if t.ndim > 1 else t.repeat_interleave(2)[::2] for t in leaves]
    torch.library.opcheck(torch.ops.rwkv_engine.wkv4.default, [t.requires_grad_() for t in leaves])


def test_a_second_derivative_is_refused_not_zero():
    leaves = [t.requires_grad_() for t in make_inputs(1, 3, 4, torch.float64)]
    [slope] = torch.autograd.grad(wkv4(*leaves)[0].square().sum(), leaves[2], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        slope.sum().backward()


@needs_kernels
@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, torch.zeros(7), r"wkv4: decay: expected shape \[8\], got \[7\]"),
        (3, torch.zeros(2, 3, 9), r"wkv4: v: expected shape \[2, 3, 8\], got \[2, 3, 9\]"),
        (4, torch.zeros(2, 8, dtype=torch.float64), r"wkv4: num: expected dtype Float as k has, got Double"),
        (2, torch.zeros(2, 0, 8), r"wkv4: k: expected shape \(B, T, C\) with T > 0"),
    ],
)
def test_wrong_arguments_are_named(index, bad, message):
    inputs = make_inputs(2, 3, 8)
    inputs[index] = bad
    with pytest.raises(RuntimeError, match=message):
        wkv4(*inputs)
