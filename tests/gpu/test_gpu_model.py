"""The model on the GPU: precisions and mixes against the oracle and the CPU, recorded decode against eager decode."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from conftest import require_gpu
from generation.test_recorded import ADJUSTED, V, run
from models.test_precision import DTYPES, SHAPE, TOKENS, error, plain_torch, read
from oracle import Shape
from torch import Tensor

from rwkv_engine import RWKV
from rwkv_engine.generation import SamplingParams
from rwkv_engine.generation.draw import Draw
from rwkv_engine.models.weights import Dense
from rwkv_engine.runtime import decoder
from rwkv_engine.runtime.decoder import Decoder
from rwkv_engine.runtime.graph import eager

pytestmark = pytest.mark.gpu
require_gpu()
GREEDY = Draw.of(SamplingParams(temperature=0))


@pytest.fixture
def load(gpu, tmp_path):
    """A model of given weights; `gpu` in the strategy stands for the device."""

    def load(weights: dict, strategy: str) -> RWKV:
        return RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth"), strategy.replace("gpu", gpu))

    return load


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("precision", DTYPES)
def test_the_error_is_below_twice_plain_torchs(precision, one_by_one, load, gpu):
    weights = oracle.random_weights(SHAPE, 1)
    expected, _ = oracle.forward(weights, TOKENS)
    theirs = error(plain_torch(weights, TOKENS, DTYPES[precision]), expected)
    model = load(weights, f"gpu {precision}")
    assert not any(isinstance(module, Dense) for module in model.engine.model.modules()), "kernels are in use"
    assert model.engine.model.head.tiles.dtype == DTYPES[precision]
    logits = read(model, one_by_one)
    assert logits.device.type == torch.device(gpu).type
    assert error(logits.cpu(), expected) < 2 * theirs


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(
    "mix",
    [
        "gpu fp32 *2 -> cpu fp32",
        "cpu fp32 *2 -> gpu fp32",
        "gpu bf16 *2 -> cpu fp32",
        "cpu fp32 *1 -> gpu fp16 *2 -> cpu fp32",
        "gpu fp32 *1 -> cpu fp32 *1 -> gpu bf16 *1 -> cpu bf16",
        "gpu fp16 *4 -> cpu fp16",  # the head alone
    ],
)
def test_mixes_with_the_cpu(mix, one_by_one, load):
    weights = oracle.random_weights(SHAPE, 3)
    expected, _ = oracle.forward(weights, TOKENS)
    coarsest = next(name for name in ("bf16", "fp16", "fp32") if name in mix)
    alone = error(plain_torch(weights, TOKENS, DTYPES[coarsest]), expected)
    assert error(read(load(weights, mix), one_by_one).cpu(), expected) < 2 * alone


@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (1, 129), (32, 1), (32, 3)], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_squared_relu_beyond_float16_does_not_overflow(precision, rows, load):
    weights = oracle.random_weights(SHAPE)
    weights["blocks.1.ffn.key.weight"] = weights["blocks.1.ffn.key.weight"] * 200
    weights["blocks.1.ffn.value.weight"] = weights["blocks.1.ffn.value.weight"] / 200
    tokens = torch.tensor(np.resize(TOKENS, rows))
    logits = load(weights, f"gpu {precision}").forward(tokens, full_output=True)[0].cpu()
    expected = np.stack([oracle.forward(weights, row.tolist())[0] for row in tokens[:2]])
    bound = 2 * error(plain_torch(weights, tokens[0].tolist(), torch.bfloat16), expected[0])
    assert torch.isfinite(logits).all()
    assert error(logits[:2], expected) < bound


def test_a_state_moves_between_devices(load, gpu):
    """What the GPU read the CPU goes on from, and the other way round."""
    weights = oracle.random_weights(SHAPE, 2)
    expected, _ = oracle.forward(weights, TOKENS)
    there, here = load(weights, "gpu fp32"), load(weights, "cpu fp32")
    bound = 2 * error(plain_torch(weights, TOKENS, torch.float32), expected)
    for first, second in ((there, here), (here, there)):
        state = first.forward(TOKENS[:70])[1]
        logits = second.forward(TOKENS[70:], state, full_output=True)[0].cpu()
        assert error(logits, expected[70:]) < bound


@pytest.mark.parametrize("precision", [*DTYPES, "fp16i8"])
def test_sequences_of_a_batch_are_those_alone_bit_for_bit(precision, load):
    model = load(oracle.random_weights(SHAPE), f"gpu {precision}")
    tokens = torch.tensor(np.resize(TOKENS, (16, 3)))
    together, states = [], None
    for column in tokens.t():
        logits, states = model.forward(column[:, None], states)
        together.append(logits)
    for i in (0, 7, 15):
        state = None
        for token, logits in zip(tokens[i], together, strict=True):
            alone, state = model.forward([int(token)], state)
            assert torch.equal(alone, logits[i])


def greedy(decoder: Decoder, prompt_state, first: Tensor, n: int) -> list[int]:
    [slot] = decoder.pool.take(prompt_state)
    ids = decoder.run(first, [slot], n, GREEDY)[0].tolist()
    decoder.pool.free([slot])
    return ids


@pytest.mark.parametrize("precision", DTYPES)
def test_ten_thousand_greedy_tokens_recorded_and_eager(precision, gpu):
    """The same ids; and those of the float32 CPU model up to the first place where two logits are about equal."""
    model = RWKV.from_pretrained("tales", f"{gpu} {precision}")
    n = 10_000 if gpu != "cpu" else 200
    prompt = model.encode_prompt("Once upon a time there was")
    logits, state = model.forward(prompt)
    first = logits.argmax().view(1)
    recorded = greedy(Decoder(model.engine.model), state, first, n)
    assert recorded == greedy(Decoder(model.engine.model, capture=eager), state, first, n)
    assert recorded == greedy(Decoder(model.engine.model), state, first, n), "and so once more"

    reference = RWKV.from_pretrained("tales", "cpu fp32")
    ids = [int(first), *recorded]
    expected, prefilled = (
        m.forward([*prompt, *ids[:-1]], full_output=True)[0][len(prompt) - 1 :].cpu() for m in (reference, model)
    )
    best = expected.topk(2).values
    # Prefill in this precision, whose error other tests bound, tells what rounding does to a logit here.
    close = 4 * (prefilled - expected).abs().amax(dim=-1)
    clear = (best[:, 0] - best[:, 1]) > close
    differs = expected.argmax(dim=-1) != torch.tensor(ids)
    assert not (differs & clear).any(), "a token differs although another one was clearly the likeliest"
    assert clear.float().mean() > 0.5, "the test tests something"
    print(f"{precision}: {int(differs.sum())} of {len(ids)} greedy tokens differ, where two are about as likely")


def test_a_sampled_text_is_that_of_the_cpu(gpu):
    """One source of randomness: the same numbers are drawn on every device."""
    options = {"temperature": 0.9, "top_p": 0.9, "seed": 3}
    there = RWKV.from_pretrained("tales", f"{gpu} fp32").generate("The fox", 60, **options)
    assert there == RWKV.from_pretrained("tales").generate("The fox", 60, **options)


def test_adjusted_texts_are_the_same_recorded_and_eager(load, monkeypatch):
    """Penalties, biases, bans and masks; texts give their slots to others, with other adjustments."""
    shape = Shape(n_layer=2, n_embd=64, n_att=64, n_ffn=128, n_vocab=V)
    engine = load(oracle.random_weights(shape), "gpu fp32").engine
    params = [SamplingParams(seed=i, temperature=i % 5 / 3, **ADJUSTED[i % len(ADJUSTED)]) for i in range(60)]
    recorded = run(engine, params, 13, slots=5, turn=3)
    monkeypatch.setattr(decoder, "_capture_for", lambda model: eager)
    for request, other in zip(recorded, run(engine, params, 13, slots=5, turn=3), strict=True):
        assert request.tokens == other.tokens
        expected = [entry.logprob for entry in other.logprobs]
        # Steps are padded to other numbers of rows, and kernels for them may add float32 in another order.
        assert [entry.logprob for entry in request.logprobs] == pytest.approx(expected, abs=1e-4)
