"""Every operator on the GPU against its reference, in float64 too. Inputs are those of the tests on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import require_gpu
from gpu.devices import on
from ops.test_mixing4_steps import (
    DTYPES,
    KINDS,
    SIZES,
    Half,
    channel_half,
    channel_step,
    exactly,
    time_half,
    time_step,
)
from ops.test_prefill_ops import normal, shifts, tiled
from torch import Tensor

from rwkv_engine.native import build, cpu_kernels, cuda_kernels
from rwkv_engine.ops import (
    activate_rows,
    draw_tokens,
    embed_norm,
    gate_residual,
    linear,
    linear_many,
    ln_shift,
    ln_shift_rounded,
    most_likely,
    norm_linear,
    philox_uniform,
    residual_rows,
    scale_rows,
    squared_relu_,
    tile,
    untile,
    untile_alike,
)
from rwkv_engine.ops.activate_rows import activate_rows_reference
from rwkv_engine.ops.embed_norm import Counted
from rwkv_engine.ops.gate_residual import gate_residual_reference
from rwkv_engine.ops.linear import linear_reference
from rwkv_engine.ops.linear_many import dense_product
from rwkv_engine.ops.ln_shift import ln_shift_reference
from rwkv_engine.ops.most_likely import most_likely_reference
from rwkv_engine.ops.philox_uniform import philox_uniform_reference
from rwkv_engine.ops.residual_rows import residual_rows_reference
from rwkv_engine.ops.scale_rows import scale_rows_reference
from rwkv_engine.ops.squared_relu import squared_relu_reference
from rwkv_engine.ops.tiles import tiled_shape

pytestmark = pytest.mark.gpu
require_gpu()
# The reference serves them on the CPU.
FOR_GPUS = {
    "activate_rows",
    "embed_norm",
    "ln_shift_rounded",
    "most_likely",
    "norm_linear",
    "quantised_product",
    "residual_rows",
    "scale_rows",
    "untile_alike",
    "wkv7_backward",
}
MATRICES = [(1, 1), (16, 32), (17, 33), (15, 31), (40, 100), (2056, 8), (8, 2056), (50, 65), (768, 3072), (8192, 2048)]


def half_on(device: str, half: Half) -> Half:
    return Half(on(device, half.arguments), on(device, half.state))


def test_the_kernels_are_compiled(cuda):
    status = cuda_kernels.status()
    assert status.kind in ("prebuilt", "jit"), status.reason


@pytest.mark.parametrize("name", {schema.partition("(")[0]: None for schema in build.schemas()})
def test_every_operator_has_a_kernel(name, gpu):
    if name == "linear_many" and gpu != "cpu":
        pytest.skip("torch's products serve it on GPUs")
    if name in FOR_GPUS and gpu == "cpu":
        pytest.skip("the reference serves it on the CPU")
    if name == "blocks4_step" and gpu != "cpu":
        pytest.skip("the operators of both halves serve it on GPUs")
    cpu_kernels.ensure_loaded()
    key = gpu.partition(":")[0].upper()
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rwkv_engine::{name}", key)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 15, 16])
@pytest.mark.parametrize("size", [*SIZES, (768, 768, 3072)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_against_the_reference(kind, size, batch, dtype, gpu):
    """Weights are the same numbers in both, so both make float32's errors only; the fused one no more than twice."""
    make, step, reference = KINDS[kind]
    half = make(size, batch, dtype)
    exact_y, exact_state = half.run(exactly(reference))

    def errors(result):
        y, state = on("cpu", result)
        pairs = zip([y, *state], [exact_y, *exact_state], strict=True)
        return [((t.double() - e).abs().max() / e.abs().max()).item() for t, e in pairs]

    # Rounding errors of a sum of c terms in four parts, a random walk of c / 4 steps of 2^-24.
    floor = max(2.0**-22, math.sqrt(size[0] / 4) * 2.0**-24)
    ours, theirs = half_on(gpu, half).run(step), half.run(reference)
    for our_error, their_error in zip(errors(ours), errors(theirs), strict=True):
        assert our_error < 2 * max(their_error, floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(40, 56, 100), (768, 768, 3072)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_in_any_batch_at_any_time(kind, size, dtype, gpu):
    make, step, _ = KINDS[kind]
    half = half_on(gpu, make(size, 16, dtype))
    y, state = half.run(step)
    again_y, again_state = half.run(step)
    assert torch.equal(y, again_y)
    assert all(torch.equal(a, b) for a, b in zip(state, again_state, strict=True))
    for first, last in [*((i, i + 1) for i in range(16)), (3, 5), (1, 4), (2, 10), (0, 15)]:
        x, *rest = half.arguments
        y_part, state_part = Half([x[first:last], *rest], [t[first:last] for t in half.state]).run(step)
        assert torch.equal(y_part, y[first:last])
        for part, whole in zip(state_part, state, strict=True):
            assert torch.equal(part, whole[first:last])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [[4, 0, 5], [6], [15, 3, 9, 2, 11, 1, 14, 0, 8, 7, 5, 13, 12, 6, 4, 10]], ids=str)
def test_slots_of_a_pool(kind, slots, gpu):
    """The same bits as without a pool, and nothing else in it is touched."""
    make, step, _ = KINDS[kind]
    half = half_on(gpu, make((40, 56, 100), len(slots), torch.bfloat16))
    y, state = half.run(step)
    pools = [torch.randn(17, 3, t.shape[1], device=gpu) for t in half.state]
    for pool, t in zip(pools, half.state, strict=True):
        pool[slots, 1] = t
    before = [pool.clone() for pool in pools]
    index = torch.tensor(slots, device=gpu)
    assert torch.equal(step(*half.arguments, *(pool[:, 1] for pool in pools), index), y)
    for pool, old, new in zip(pools, before, state, strict=True):
        assert torch.equal(pool[slots, 1], new)
        pool[slots, 1] = old[slots, 1]
        assert torch.equal(pool, old)


def test_padding_may_share_a_dummy_slot(gpu):
    """Rows of slots of their own come out as if they were alone."""
    for make, step in ((time_half, time_step), (channel_half, channel_step)):
        half = half_on(gpu, make((40, 56, 100), 4, torch.float32))
        alone = Half([half.arguments[0][:2], *half.arguments[1:]], [t[:2] for t in half.state]).run(step)
        index = torch.tensor([0, 1, 3, 3], device=gpu)
        state = [t.clone() for t in half.state]
        y = step(*half.arguments, *state, index)
        assert torch.equal(y[:2], alone[0])
        for ours, expected, old in zip(state, alone[1], half.state, strict=True):
            assert torch.equal(ours[:2], expected)
            assert torch.equal(ours[2], old[2])


def test_a_square_beyond_float16_is_exact(gpu):
    half = channel_half((64, 64, 256), 4, torch.float16)
    half.arguments[1] = half.arguments[1] * 300  # the LayerNorm's weight, so k reaches hundreds, its square 100,000s
    theirs = half.run(KINDS["channel"][2])[0]
    ours = half_on(gpu, half).run(channel_step)[0].cpu()
    assert theirs.abs().max() > 65504
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_nan_is_not_hidden_by_the_relu(gpu):
    half = channel_half((40, 56, 100), 2, torch.float32)
    half.arguments[0][1, 3] = torch.nan
    y, _ = half_on(gpu, half).run(channel_step)
    assert torch.isfinite(y[0]).all()
    assert y[1].isnan().all()
    assert squared_relu_(on(gpu, half.arguments[0]))[1, 3].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", MATRICES, ids=str)
def test_tiles(size, dtype, gpu):
    weight = normal(*size).to(dtype)
    tiles = torch.full(tiled_shape(*size, dtype), torch.nan, dtype=dtype, device=gpu)
    tile(weight.to(gpu), tiles)
    assert torch.equal(tiles.cpu(), tiled(weight))
    assert torch.equal(untile(tiles, *size).cpu(), weight)
    other = tiled(weight.flip(0)).to(gpu)
    alike = untile_alike([tiles, other, tiles], *size).cpu()
    assert torch.equal(alike, torch.stack([weight, weight.flip(0), weight]))
    if size[1] > 1:
        transposed = weight.to(gpu).t()
        back = torch.empty(tiled_shape(*transposed.shape, dtype), dtype=dtype, device=gpu)
        tile(transposed, back)
        assert torch.equal(untile(back, *transposed.shape), transposed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("size", MATRICES, ids=str)
def test_linear_against_float64(size, batch, dtype, gpu):
    n, k = size
    weight, x = normal(n, k).to(dtype), normal(batch, k, seed=1)
    exact = x.double() @ weight.double().t()
    scale = x.double().abs() @ weight.double().abs().t()

    def error(y: Tensor) -> float:
        return ((y.cpu().double() - exact).abs() / scale).max().item()

    tiles = tiled(weight)
    y = linear(x.to(gpu), tiles.to(gpu), n)
    assert error(y) < 2 * max(error(linear_reference(x, tiles, n)), 2.0**-24)
    for i in range(batch):
        assert torch.equal(linear(x[i : i + 1].to(gpu), tiles.to(gpu), n)[0], y[i])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 17, 33), (129, 300, 513), (300, 31, 768)], ids=str)
def test_linear_many_against_float64(size, dtype, gpu):
    m, n, k = size
    weight, x = normal(n, k, scale=k**-0.5).to(dtype), normal(m, k, seed=1)
    exact = x.double() @ weight.double().t()
    scale = x.double().abs() @ weight.double().abs().t()

    def error(y: Tensor) -> float:
        return ((y.cpu().double() - exact).abs() / scale).max().item()

    bound = 2 * max(error(dense_product(x, weight)), 2.0**-24 * math.sqrt(min(k, 256)))
    with torch.no_grad():
        for packed in (tiled(weight), weight.t().contiguous()):
            y = linear_many(x.to(gpu), packed.to(gpu), n)
            assert y.dtype == torch.float32
            assert error(y) < bound


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 8), (3, 129, 33), (2, 5, 2056)], ids=str)
def test_ln_shift_against_float64(size, gpu):
    arguments = shifts(*size)
    exact = ln_shift_reference(*[a.double() if isinstance(a, Tensor) else a for a in arguments])
    ours = on("cpu", ln_shift(*on(gpu, arguments)))
    for got, theirs, expected in zip(ours, ln_shift_reference(*arguments), exact, strict=True):
        reference = max((theirs - expected).abs().max().item(), 2.0**-23 * expected.abs().max().item())
        assert got.shape == expected.shape
        assert (got - expected).abs().max() < 2 * reference


def test_ln_shift_goes_on_where_it_stopped(gpu):
    x, *norm, mixes, shift = on(gpu, shifts(2, 40, 24))
    mixed, last = ln_shift(x, *norm, mixes, shift)
    first, between = ln_shift(x[:, :17], *norm, mixes, shift)
    second, end = ln_shift(x[:, 17:], *norm, mixes, between)
    assert torch.equal(torch.cat([first, second], dim=2), mixed)
    assert torch.equal(end, last)


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (40000,), (0,)], ids=str)
def test_gates_against_the_reference(shape, gpu):
    x, r, y = (normal(*shape, seed=i, scale=20) for i in range(3))
    assert torch.equal(squared_relu_(x.to(gpu)).cpu(), squared_relu_reference(x))
    for base in (None, x):
        exact = gate_residual_reference(*[t if t is None else t.double() for t in (base, r, y)])
        got = gate_residual(*on(gpu, [base, r, y])).cpu().double()
        torch.testing.assert_close(got, exact, rtol=3e-7, atol=3e-6)


def test_draws_are_the_same_everywhere(gpu):
    bits = torch.randint(-(2**63), 2**63 - 1, (3, 1000), generator=torch.Generator().manual_seed(0))
    bits[:, 0] = 0
    bits[:, 1] = -1
    assert torch.equal(philox_uniform(*on(gpu, list(bits))).cpu(), philox_uniform_reference(*bits))


def test_tokens_are_those_of_the_cpu(gpu):
    generator = torch.Generator().manual_seed(0)
    logits, draws = torch.randn(64, 5000, generator=generator), torch.rand(64, dtype=torch.float64, generator=generator)
    temperatures = torch.tensor([0.0, 0.8, 1.0, 1.2], dtype=torch.float64).repeat(16)
    off = torch.zeros_like(draws)
    arguments = [logits, temperatures, torch.arange(64) % 3 * 20, off + 0.9, off, draws]
    assert torch.equal(draw_tokens(*on(gpu, arguments)).cpu(), draw_tokens(*arguments))
    keys = torch.randint(2**62, (3, 64), generator=generator)
    made = draw_tokens(*on(gpu, arguments[:5]), tuple(on(gpu, list(keys))))
    assert torch.equal(made.cpu(), draw_tokens(*arguments[:5], tuple(keys)))


def test_the_most_likely_tokens(gpu):
    logits = torch.randn(40, 5000, generator=torch.Generator().manual_seed(1)).mul(3).round()  # many are equal
    for row, value in enumerate([torch.nan, torch.inf, -torch.inf]):
        logits[row, 17] = value
    for given in (logits, logits.double()):
        assert torch.equal(most_likely(on(gpu, [given])[0]).cpu(), most_likely_reference(given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalised_embeddings(dtype, gpu):
    table, weight, bias = normal(100, 777).to(dtype), normal(777, seed=1), normal(777, seed=2)
    tokens = torch.arange(99, -1, -9)
    exact = embed_norm(tokens, table.double(), weight.double(), bias.double(), 1e-5)
    with torch.no_grad():
        got = embed_norm(*on(gpu, [tokens, table, weight, bias]), 1e-5)
    torch.testing.assert_close(got.cpu().double(), exact, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_with_normalised_rows(dtype, gpu):
    """As LayerNorm and the product do in float64, and bit for bit the same whatever the number of rows."""
    x, weight, bias, matrix = normal(16, 777) + 3, normal(777, seed=1), normal(777, seed=2), normal(50, 777).to(dtype)
    exact = torch.nn.functional.layer_norm(x.double(), (777,), weight.double(), bias.double(), 1e-5)
    exact = exact @ matrix.double().t()
    x, weight, bias, tiles = on(gpu, [x, weight, bias, tiled(matrix)])
    got = norm_linear(x, weight, bias, 1e-5, tiles, 50)
    torch.testing.assert_close(got.cpu().double(), exact, rtol=1e-5, atol=1e-4 * exact.abs().max().item())
    if gpu != "cpu":
        for rows in (1, 2, 3, 4, 5, 8):
            assert torch.equal(norm_linear(x[:rows], weight, bias, 1e-5, tiles, 50), got[:rows])


def test_normalised_embeddings_count_their_tokens(gpu):
    positions, after = torch.arange(17).to(gpu), torch.zeros(3, dtype=torch.int64, device=gpu)
    table, vector, tokens = normal(5, 8).to(gpu), normal(8).to(gpu), torch.tensor([1, 2, 3], device=gpu)
    with torch.no_grad():
        counted = Counted(positions, torch.tensor([16, 0, 5], device=gpu), after)
        embed_norm(tokens, table, vector, vector, 1e-5, counted)
    assert after.tolist() == [17, 1, 6]
    assert positions.tolist() == [1, 1, 2, 3, 4, 6, *range(6, 16), 17]


def test_scaled_rows(gpu):
    x = normal(50, 777) * 10.0 ** torch.arange(-25, 25).unsqueeze(-1)
    for columns in (None, normal(777).abs()):
        for got, expected in zip(scale_rows(*on(gpu, [x, columns])), scale_rows_reference(x, columns), strict=True):
            assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_around_products_in_16_bits(dtype, gpu):
    """Rounded once; the activations before may differ from the reference's by float32's rounding."""
    x, y, gate = (normal(50, 777, seed=i, scale=9) for i in range(3))
    unit = torch.finfo(dtype).eps
    for own in (None, gate):
        arguments = on(gpu, [x, own])
        for got, expected in zip(activate_rows(*arguments, dtype), activate_rows_reference(x, own, dtype), strict=True):
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got.cpu().float(), expected.float(), rtol=unit, atol=1e-6)
        powers = 2.0 ** torch.arange(-25, 25).unsqueeze(-1)
        got, exact = residual_rows(*on(gpu, [x, own, y, powers])), residual_rows_reference(x, own, y, powers)
        torch.testing.assert_close(got.cpu(), exact, rtol=1e-5, atol=1e-5)
    arguments = shifts(2, 40, 24)
    mixed, last = ln_shift_rounded(*on(gpu, arguments), dtype)
    expected, end = ln_shift(*on(gpu, arguments))
    torch.testing.assert_close(mixed.cpu().float(), expected.cpu(), rtol=unit, atol=1e-6)
    torch.testing.assert_close(last, end, rtol=1e-6, atol=1e-6)


def test_powers_of_two_are_exact(gpu):
    """Rows of activations are scaled by them, for products in 16 bits."""
    exponents = torch.arange(-126, 128, dtype=torch.int32)
    exact = torch.tensor([2.0**n for n in exponents.tolist()])
    assert torch.equal(torch.ldexp(torch.ones(254), exponents).to(gpu), exact.to(gpu))
    assert torch.equal(torch.ldexp(torch.ones(254, device=gpu), exponents.to(gpu)).cpu(), exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [0, 1, 3, -1])
def test_a_tensor_on_the_wrong_device_is_named(kind, index, cuda):
    """x on the GPU, a vector, a matrix or a state on the CPU; or all but x on the GPU."""
    make, step, _ = KINDS[kind]
    half = half_on(cuda, make((16, 32, 64), 2, torch.float32))
    everything = [*half.arguments, *half.state]
    index = index if index != 3 else len(half.arguments) - 1
    everything[index] = everything[index].cpu()
    with pytest.raises(RuntimeError, match=rf"{step.__name__}: \w+: expected .*cpu"):
        step(*everything)


@pytest.mark.parametrize("op", [linear, linear_many])
def test_weights_on_another_device_are_refused(op, cuda):
    with pytest.raises(RuntimeError, match="cpu"):
        op(normal(3, 40).to(cuda), tiled(normal(20, 40)), 20)


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind, gpu):
    make, step, _ = KINDS[kind]
    half = half_on(gpu, make((16, 32, 64), 2, torch.bfloat16))
    operator = getattr(torch.ops.rwkv_engine, step.__name__).default
    torch.library.opcheck(operator, (*half.arguments, *half.state, None, []))


def test_kernels_run_on_the_current_stream(cuda):
    """Work queued before on a side stream is waited for by what follows on it, without any synchronisation of ours."""
    half = half_on(cuda, time_half((768, 768, 3072), 4, torch.bfloat16))
    expected, _ = half.run(time_step)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    late = torch.zeros_like(half.arguments[0])
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(half.arguments[0])
        state = [t.clone() for t in half.state]
        y = time_step(late, *half.arguments[1:], *state)
    stream.synchronize()
    assert torch.equal(y, expected)
