"""Half precision and mixes of it, against the float64 oracle and against plain torch in the same dtype."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import as_torch, save_pth
from oracle import Shape
from states import FIELDS
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine import RWKV

SHAPE = Shape(n_layer=4, n_embd=64, n_att=64, n_ffn=256, n_vocab=101)
TOKENS = np.random.default_rng(1).integers(0, SHAPE.n_vocab, 150).tolist()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def plain_torch(weights: dict, tokens: list[int], dtype: torch.dtype) -> Tensor:
    """RWKV-4 with every weight and activation in `dtype`, the recurrence alone in float32: what one writes at first."""
    w = {name: tensor.to(dtype).squeeze() for name, tensor in as_torch(weights).items()}
    c = w["emb.weight"].shape[1]
    n_layer = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (c,), w[f"{name}.weight"], w[f"{name}.bias"])

    def shifted(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, -1))

    x = norm(w["emb.weight"][tokens], "blocks.0.ln0")
    for i in range(n_layer):
        b = f"blocks.{i}."

        def product(now: Tensor, last: Tensor, part: str, name: str, b: str = b) -> Tensor:
            mix = w[f"{b}{part}.time_mix_{name[0]}"]
            return F.linear(now * mix + last * (1 - mix), w[f"{b}{part}.{name}.weight"])

        now = norm(x, b + "ln1")
        r, k, v = (product(now, shifted(now), "att", name) for name in ("receptance", "key", "value"))
        u, decay = w[b + "att.time_first"].float(), -w[b + "att.time_decay"].float().exp()
        num, den, rows = torch.zeros(len(u)), torch.zeros(len(u)), []
        for k_t, v_t in zip(k.float(), v.float(), strict=True):
            rows.append((num + torch.exp(u + k_t) * v_t) / (den + torch.exp(u + k_t)))
            num = decay.exp() * num + k_t.exp() * v_t
            den = decay.exp() * den + k_t.exp()
        x = x + F.linear(torch.sigmoid(r) * torch.stack(rows).to(dtype), w[b + "att.output.weight"])
        now = norm(x, b + "ln2")
        r, k = (product(now, shifted(now), "ffn", name) for name in ("receptance", "key"))
        x = x + torch.sigmoid(r) * F.linear(torch.relu(k) ** 2, w[b + "ffn.value.weight"])
    return F.linear(norm(x, "ln_out"), w["head.weight"]).double()


def error(logits: Tensor, expected: np.ndarray) -> float:
    """Root mean square, relative."""
    difference = logits.double().numpy() - expected
    return float(np.sqrt((difference**2).mean() / (expected**2).mean()))


def model_of(weights: dict, strategy: str, tmp_path) -> RWKV:
    return RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth"), strategy)


def read(model: RWKV, one_by_one: bool) -> Tensor:
    if not one_by_one:
        return model.forward(TOKENS, full_output=True)[0]
    rows, state = [], None
    for token in TOKENS:
        logits, state = model.forward([token], state)
        rows.append(logits)
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_error_is_below_twice_plain_torchs(precision, seed, one_by_one, tmp_path):
    weights = oracle.random_weights(SHAPE, seed)
    expected, _ = oracle.forward(weights, TOKENS)
    theirs = error(plain_torch(weights, TOKENS, DTYPES[precision]), expected)
    model = model_of(weights, f"cpu {precision}", tmp_path)
    assert model.engine.model.head.weight.dtype == DTYPES[precision]
    assert error(read(model, one_by_one), expected) < 2 * theirs


@pytest.mark.slow
@pytest.mark.parametrize(
    "mix",
    [
        "cpu bf16 *2 -> cpu fp32",
        "cpu fp32 *1 -> cpu fp16 *2 -> cpu fp32",
        "cpu fp16 *2 -> cpu bf16",
        "cpu fp32 *4 -> cpu bf16",  # the head alone
        "cpu fp32 *1 -> cpu bf16 *1 -> cpu fp16",
    ],
)
def test_a_mix_is_as_good_as_its_coarsest_segment(mix, tmp_path):
    """Errors add up in random directions: a mix need not be better than that segment alone, but never clearly worse."""
    weights = oracle.random_weights(SHAPE, 3)
    expected, _ = oracle.forward(weights, TOKENS)
    coarsest = "bf16" if "bf16" in mix else "fp16"
    alone = error(plain_torch(weights, TOKENS, DTYPES[coarsest]), expected)
    model = model_of(weights, mix, tmp_path)
    assert error(read(model, False), expected) < 2 * alone
    used = {p.dtype for p in model.engine.model.parameters() if p.ndim > 1}
    assert used == {DTYPES[name] for name in DTYPES if name in mix}


def test_vectors_and_states_stay_float32(tmp_path):
    model = model_of(oracle.random_weights(SHAPE), "cpu bf16", tmp_path)
    assert {p.dtype for p in model.engine.model.parameters() if p.ndim == 1} == {torch.float32}
    logits, state = model.forward(TOKENS)
    assert logits.dtype == torch.float32
    assert {t.dtype for t in (state.att_shift, state.ffn_shift, state.wkv_num, state.wkv_max)} == {torch.float32}


@pytest.mark.parametrize("precision", DTYPES)
def test_where_a_chunk_ends_changes_no_bit(precision, tmp_path):
    """Nor do other sequences of the batch; a token read alone takes another way and is left out."""
    model = model_of(oracle.random_weights(SHAPE, 4), f"cpu {precision}", tmp_path)
    whole, end = model.forward(TOKENS)
    for edges in ([2], [17, 31], [75], [148]):
        state = None
        for part in np.split(TOKENS, edges):
            logits, state = model.forward(part.tolist(), state)
        assert torch.equal(logits, whole)
        assert all(torch.equal(getattr(state, name), getattr(end, name)) for name in FIELDS)
    others = torch.tensor(np.random.default_rng(2).integers(0, SHAPE.n_vocab, (7, len(TOKENS))))
    together, _ = model.forward(torch.cat([others[:3], torch.tensor([TOKENS]), others[3:]]))
    assert torch.equal(together[3], whole)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (1, 129), (32, 1), (32, 3)], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_squared_relu_beyond_float16_does_not_overflow(precision, rows, tmp_path):
    """k beyond 256 squares to more than float16 holds; the rwkv package gives Inf or NaN there."""
    weights = oracle.random_weights(SHAPE)
    weights["blocks.1.ffn.key.weight"] = weights["blocks.1.ffn.key.weight"] * 200
    weights["blocks.1.ffn.value.weight"] = weights["blocks.1.ffn.value.weight"] / 200
    tokens = torch.tensor(np.resize(TOKENS, rows))
    logits, _ = model_of(weights, f"cpu {precision}", tmp_path).forward(tokens, full_output=True)
    expected = np.stack([oracle.forward(weights, row.tolist())[0] for row in tokens[:2]])
    bound = 2 * error(plain_torch(weights, tokens[0].tolist(), torch.bfloat16), expected[0])
    assert torch.isfinite(logits).all()
    assert error(logits[:2], expected) < bound
    if precision == "fp16":  # the test tests something
        assert not torch.isfinite(plain_torch(weights, tokens[0].tolist(), torch.float16)).all()
