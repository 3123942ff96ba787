"""int8 weights on the GPU: every operator that takes them, and the model. Activations of decoding are float32 there.

On the CPU, which can run these tests too, they are 16-bit integers, so the tolerances are larger."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import as_torch, save_pth
from conftest import require_gpu
from gpu.devices import on
from models.test_precision import SHAPE, TOKENS, error, plain_torch, read
from ops.test_int8_product import error_in_bounds
from ops.test_int8_weights import SIZES as MATRICES
from ops.test_int8_weights import STEP_SIZES, Quantized, int8_half
from ops.test_mixing4_steps import KINDS, Half, exactly, numbers

from rwkv_engine import RWKV
from rwkv_engine.generation import SamplingParams
from rwkv_engine.generation.draw import Draw
from rwkv_engine.models.int8 import quantized
from rwkv_engine.models.weights import Dense
from rwkv_engine.ops import linear, linear_many, tile, untile
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.linear import linear_reference
from rwkv_engine.ops.tiles import tiled_shape
from rwkv_engine.runtime.decoder import Decoder
from rwkv_engine.runtime.graph import eager

pytestmark = pytest.mark.gpu
require_gpu()


@pytest.mark.parametrize("size", MATRICES, ids=str)
def test_tiles(size, gpu):
    matrix = Quantized.random(*size)
    tiles = torch.full(tiled_shape(*size, torch.int8), -1, dtype=torch.int8, device=gpu)
    tile(matrix.q.to(gpu), tiles)
    assert torch.equal(tiles.cpu(), matrix.tiles)
    assert torch.equal(untile(tiles, *size).cpu(), matrix.q)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("size", [*MATRICES, (2056, 8), (8192, 2048)], ids=str)
def test_linear_against_float64(size, batch, gpu):
    matrix, x = Quantized.random(*size), numbers(1)(batch, size[1])
    exact, sizes = x.double() @ matrix.exact.t(), x.double().abs() @ matrix.exact.abs().t()
    theirs = (linear_reference(x, matrix.tiles, size[0], matrix.scales) - exact).abs() / sizes
    # One rounding for the scale of a column and one for that of a row, besides those of the sum.
    bound = matrix.bound(x) if gpu == "cpu" else (2 * theirs.max() + 2 * 2.0**-23) * sizes
    tiles, scales = matrix.tiles.to(gpu), matrix.scales.to(gpu)
    y = linear(x.to(gpu), tiles, size[0], scales)
    assert ((y.cpu() - exact).abs() <= bound).all()
    for i in range(batch):
        assert torch.equal(linear(x[i : i + 1].to(gpu), tiles, size[0], scales)[0], y[i])


@pytest.mark.parametrize("form", ["tiles", "rows"])
@pytest.mark.parametrize("batch", [1, 17, 129])
@pytest.mark.parametrize("size", MATRICES, ids=str)
def test_linear_many_against_float64(size, batch, form, gpu):
    matrix, x = Quantized.random(*size), numbers(1)(batch, size[1])
    y = linear_many(x.to(gpu), getattr(matrix, form).to(gpu), size[0], matrix.scales.to(gpu)).cpu()
    assert y.dtype == torch.float32
    if gpu == "cpu":
        assert ((y - x.double() @ matrix.exact.t()).abs() <= matrix.bound(x)).all()
    else:
        assert (error_in_bounds(x, matrix, y) <= 1).all()


def test_zeros_are_exact_and_nan_stays_in_its_row(gpu):
    matrix, x = Quantized.random(20, 300), numbers(1)(4, 300)
    x[1], x[2, 280] = 0, torch.nan
    nothing = Quantized(torch.zeros_like(matrix.q), torch.ones_like(matrix.scales))
    for product, form in ((linear, "tiles"), (linear_many, "tiles"), (linear_many, "rows")):
        y, zeros = (product(*on(gpu, [x, getattr(m, form)]), 20, m.scales.to(gpu)).cpu() for m in (matrix, nothing))
        assert (y[1] == 0).all()
        assert y[2].isnan().all()
        assert y[[0, 3]].isfinite().all()
        assert (zeros[[0, 1, 3]] == 0).all()


def half_on(device: str, kind: str, size: tuple, batch: int) -> tuple[Half, list]:
    half, scales = int8_half(kind, size, batch)
    return Half(on(device, half.arguments), on(device, half.state)), on(device, scales)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("size", [*STEP_SIZES, (768, 768, 3072)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_against_the_reference(kind, size, batch, gpu):
    """Float32's errors only, no more than twice the reference's; for the CPU see ops.test_int8_weights."""
    _, step, reference = KINDS[kind]
    half, scales = half_on("cpu", kind, size, batch)
    exact_y, exact_state = half.run(exactly(reference), scales=scales)
    theirs = half.run(reference, scales=scales)
    there, scales_there = half_on(gpu, kind, size, batch)
    ours = on("cpu", there.run(step, scales=scales_there))
    floor = 4 * 2.0**-16 * math.sqrt(max(size)) if gpu == "cpu" else math.sqrt(max(16, size[0] / 4)) * 2.0**-24
    for got, near, exact in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], [exact_y, *exact_state], strict=True):
        largest = exact.abs().max().clamp_min(1)
        assert (got - exact).abs().max() < 2 * max((near - exact).abs().max(), floor * largest)


@pytest.mark.parametrize("size", [(40, 56, 100), (768, 768, 3072)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_in_any_batch_at_any_time(kind, size, gpu):
    step = KINDS[kind][1]
    half, scales = half_on(gpu, kind, size, 16)
    y, state = half.run(step, scales=scales)
    again_y, again_state = half.run(step, scales=scales)
    assert torch.equal(y, again_y)
    assert all(torch.equal(a, b) for a, b in zip(state, again_state, strict=True))
    for first, last in [*((i, i + 1) for i in range(16)), (3, 5), (1, 4), (2, 10), (0, 15)]:
        x, *rest = half.arguments
        part = Half([x[first:last], *rest], [t[first:last] for t in half.state])
        y_part, state_part = part.run(step, scales=scales)
        assert torch.equal(y_part, y[first:last])
        assert all(torch.equal(a, b[first:last]) for a, b in zip(state_part, state, strict=True))


@pytest.fixture
def load(gpu, tmp_path):
    """A model of given weights; `gpu` in the strategy stands for the device."""

    def load(weights: dict, strategy: str) -> RWKV:
        return RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth"), strategy.replace("gpu", gpu))

    return load


def rounded(weights: dict) -> dict:
    """What int8 makes of a model's weights."""

    def through_int8(name: str, weight: torch.Tensor) -> np.ndarray:
        if weight.squeeze().ndim < 2 or name.startswith("emb."):
            return weights[name]
        q, scales = quantized(weight)
        return in_floats(q, scales.double()).numpy()

    return {name: through_int8(name, weight) for name, weight in as_torch(weights).items()}


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("strategy", ["gpu fp32i8", "gpu fp16i8", "gpu fp32i8 *2 -> cpu fp32i8"])
def test_a_model_is_its_rounded_weights_but_for_its_activations(strategy, one_by_one, load, gpu):
    """Activations are float32 when decoding on a GPU, float16 in prefill there. The embedding is of the base type."""
    weights = oracle.random_weights(SHAPE, 1)
    expected, _ = oracle.forward(rounded(weights), TOKENS)
    in_float32 = one_by_one and gpu != "cpu" and "fp16" not in strategy and "cpu" not in strategy
    theirs = error(plain_torch(rounded(weights), TOKENS, torch.float32 if in_float32 else torch.float16), expected)
    model = load(weights, strategy)
    assert not any(isinstance(module, Dense) for module in model.engine.model.modules()), "kernels are in use"
    assert model.engine.model.blocks[0].ffn.value.rows.dtype == torch.int8
    assert error(read(model, one_by_one).cpu(), expected) < 2 * theirs


def test_float_and_int8_segments_mix(load):
    weights = oracle.random_weights(SHAPE, 3)
    expected, _ = oracle.forward(weights, TOKENS)
    coarse, _ = oracle.forward(rounded(weights), TOKENS)
    logits = read(load(weights, "gpu fp16i8 *2 -> cpu fp32"), False).cpu()
    assert error(logits, expected) < 2 * error(torch.from_numpy(coarse), expected)


def test_greedy_tokens_recorded_and_eager(gpu):
    model = RWKV.from_pretrained("tales", f"{gpu} fp16i8")
    logits, state = model.forward(model.encode_prompt("Once upon a time there was"))
    n = 10_000 if gpu != "cpu" else 200
    texts = []
    for decoder in (Decoder(model.engine.model), Decoder(model.engine.model, capture=eager)):
        slots = decoder.pool.take(state)
        texts.append(decoder.run(logits.argmax().view(1), slots, n, Draw.of(SamplingParams(temperature=0))))
    assert torch.equal(*texts)
