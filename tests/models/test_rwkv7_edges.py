"""RWKV-7 where numbers are at their ends, against the float64 oracle: read at once, in chunks, and token by token."""

from __future__ import annotations

import numpy as np
import oracle7
import pytest
import torch
from checkpoint_files import save_pth

from rwkv_engine import RWKV, Checkpoint, State, Strategy
from rwkv_engine.models.weights import Dense, InputMajor, Tiled
from rwkv_engine.native import cpu_kernels
from rwkv_engine.runtime import Engine, load_model

SHAPE = oracle7.Shape(n_layer=2, n_head=3, head_size=32, n_ffn=100, n_vocab=50, ranks=(9, 5, 3, 17))
IDS = np.random.default_rng(1).integers(0, SHAPE.n_vocab, 130).tolist()


def change_nothing(w):
    pass


def never_forget(w):
    w["blocks.0.att.w0"][:] = w["blocks.1.att.w0"][:] = -60


def forget_fast(w):
    w["blocks.0.att.w0"][:] = w["blocks.1.att.w0"][:] = 60


def gates_beyond_their_ends(w):
    """Their exponentials overflow float32."""
    for name in "wav":
        w[f"blocks.1.att.{name}0"][:] = 1e4
        w[f"blocks.1.att.{name}0"][..., ::2] = -1e4


def wide_low_ranks(w):
    """Inputs of tanh and of the gate's sigmoid beyond all bounds."""
    for name in "wg":
        w[f"blocks.1.att.{name}1"] *= 1e4


def zero_keys(w):
    """Of one head and of a whole layer: their lengths are 0."""
    w["blocks.0.att.key.weight"][:32] = 0
    w["blocks.1.att.key.weight"][:] = 0


def tiny_keys(w):
    """The squares of some underflow float32, and the lengths of others are near the least that is divided by."""
    w["blocks.0.att.key.weight"] *= 1e-25
    w["blocks.1.att.key.weight"] *= 1e-12


def large_keys(w):
    w["blocks.0.att.key.weight"] *= 1e4


def equal_embeddings(w):
    """Without variance, a LayerNorm divides by the root of its epsilon alone."""
    w["emb.weight"][:] = 1


def large_values(w):
    """What the output matrix multiplies, and what is between the low-rank factors, does not fit into float16."""
    for i in range(2):
        w[f"blocks.{i}.att.value.weight"] *= 1e4
        w[f"blocks.{i}.att.g2"] *= 1e3
        w[f"blocks.{i}.att.output.weight"] *= 1e-2
        w[f"blocks.{i}.att.a1"] *= 1e4
        w[f"blocks.{i}.att.a2"] *= 1e-3


def no_values(w):
    """GroupNorm of zeros."""
    w["blocks.0.att.value.weight"][:] = w["blocks.1.att.value.weight"][:] = 0


CHANGES = [
    change_nothing,
    never_forget,
    forget_fast,
    gates_beyond_their_ends,
    wide_low_ranks,
    zero_keys,
    tiny_keys,
    large_keys,
    large_values,
    equal_embeddings,
    no_values,
]


SHAPES = {
    "two channels": oracle7.Shape(2, 1, 2, 1, 7, (1, 1, 1, 1)),
    "one layer": oracle7.Shape(1, 2, 32, 100, 50),
    "heads of 64, narrower stream": oracle7.Shape(2, 1, 64, 90, 50, (33, 17, 15, 31), width=40),
    "heads of 32, wider stream": oracle7.Shape(3, 2, 32, 257, 50, (16, 1, 32, 48), width=100),
    "heads of 128": oracle7.Shape(2, 1, 128, 8, 50, (130, 64, 3, 129)),
    "ranks above the width": oracle7.Shape(2, 1, 8, 9, 50, (20, 40, 9, 33)),
}


def relative(got, expected) -> float:
    got, expected = np.asarray(got), np.asarray(expected)
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30))


def check(logits, state, expected, end, bound):
    assert relative(logits, expected) < bound
    for name, values in end.items():
        assert relative(state.fields[name][0], values) < bound, name


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@np.errstate(over="ignore")
def test_numbers_at_their_ends(change, tmp_path):
    weights = oracle7.random_weights(SHAPE)
    change(weights)
    expected, end = oracle7.forward(weights, IDS)
    model = RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth"))
    check(*model.forward(IDS, full_output=True), expected, end, 1e-4)
    single, state = [], None
    for token in IDS:
        logits, state = model.forward([token], state)
        single.append(logits)
    check(torch.stack(single), state, expected, end, 1e-4)


@pytest.mark.parametrize(("strategy", "bound"), [("cpu fp32", 1e-4), ("cpu fp32i8", 2e-3), ("cpu bf16i4", 5e-2)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_unusual_shapes(shape, strategy, bound, tmp_path):
    weights = oracle7.random_weights(shape)
    model = RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth"), strategy)
    ids = [i % shape.n_vocab for i in IDS[:40]]
    expected, end = oracle7.forward(weights | rounded(model), ids)
    check(*model.forward(ids, full_output=True), expected, end, bound)
    single, state = [], None
    for token in ids:
        logits, state = model.forward([token], state)
        single.append(logits)
    check(torch.stack(single), state, expected, end, bound)


@pytest.mark.skipif(cpu_kernels.status().kind == "reference", reason="torch's products round by their size")
@pytest.mark.parametrize("tokens", [1, 2, 129])
def test_any_chunks_give_the_same_bits(tokens, tmp_path):
    """129 tokens in chunks of 64 or 128 leave one over, which is read with the chunk before."""
    weights = oracle7.random_weights(SHAPE)
    expected, end = oracle7.forward(weights, IDS[:tokens])
    model = load_model(Checkpoint.open(save_pth(weights, tmp_path / "m.pth")), Strategy.parse("cpu fp32"))
    ids = torch.tensor([IDS[:tokens]])
    whole, after = Engine(model).forward(ids, full_output=True)
    check(whole[0], after, expected, end, 1e-4)
    for chunk in (2, 7, 64, 128):
        logits, state = Engine(model, chunk).forward(ids, full_output=True)
        assert torch.equal(logits, whole)
        for name, field in after.fields.items():
            assert torch.equal(state.fields[name], field), name


@pytest.mark.parametrize(
    "change", [never_forget, gates_beyond_their_ends, zero_keys, large_keys, large_values, no_values]
)
@pytest.mark.parametrize(("strategy", "bound"), [("cpu bf16", 0.1), ("cpu fp16", 0.02), ("cpu fp32i8", 2e-3)])
@np.errstate(over="ignore")
def test_other_formats_at_the_ends(change, strategy, bound, tmp_path):
    """Against the oracle with the same rounded weights, among which are whole columns of zeros."""
    weights = oracle7.random_weights(SHAPE)
    change(weights)
    model = RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth"), strategy)
    weights |= rounded(model)
    expected, _ = oracle7.forward(weights, IDS[:40])
    assert relative(model.forward(IDS[:40], full_output=True)[0], expected) < bound
    state = None
    for token in IDS[:40]:
        logits, state = model.forward([token], state)
    assert relative(logits, expected[-1]) < bound


def rounded(model: RWKV) -> dict[str, np.ndarray]:
    """The weights as the model has them."""
    modules, parameters = model.engine.model.named_modules(), model.engine.model.named_parameters()
    matrices = {f"{name}.weight": m.weight for name, m in modules if isinstance(m, Dense | Tiled | InputMajor)}
    others = {name: p for name, p in parameters if name.endswith((".weight", "1", "2")) and p.ndim == 2}
    return {name: weight.detach().double().numpy() for name, weight in (others | matrices).items()}


@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (1, 129), (32, 1), (32, 3)], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_squared_relu_beyond_float16_does_not_overflow(precision, rows, tmp_path):
    """As in the 7B models: k beyond 256 squares to more than float16 holds."""
    weights = oracle7.random_weights(SHAPE)
    weights["blocks.1.ffn.key.weight"] *= 200
    weights["blocks.1.ffn.value.weight"] /= 200
    model = RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth"), f"cpu {precision}")
    tokens = torch.tensor(np.resize(IDS, rows))
    logits, _ = model.forward(tokens, full_output=True)
    expected = np.stack([oracle7.forward(weights | rounded(model), row.tolist())[0] for row in tokens[:2]])
    assert relative(logits[:2], expected) < {"bf16": 0.1, "fp16": 0.02}[precision]


@pytest.mark.slow
@pytest.mark.parametrize("change", [change_nothing, never_forget])
def test_rounding_does_not_grow_over_100_000_tokens(change, tmp_path):
    """The same model in float64, whose chunks end elsewhere, is the measure."""
    shape = oracle7.Shape(n_layer=2, n_head=1, head_size=32, n_ffn=40, n_vocab=20)
    weights = oracle7.random_weights(shape)
    change(weights)
    checkpoint = Checkpoint.open(save_pth(weights, tmp_path / "m.pth"))
    tokens = torch.randint(20, (1, 100_000), generator=torch.Generator().manual_seed(0))
    engine = Engine(load_model(checkpoint, Strategy.parse("cpu fp32")))
    exact = load_model(checkpoint, Strategy.parse("cpu fp32"), trainable=True).requires_grad_(False).double()
    state, other = engine.initial_state(), engine.initial_state()
    other = State({name: field.double() for name, field in other.fields.items()}, other.position)
    for begin in range(0, 100_000, 20_000):
        logits, state = engine.forward(tokens[:, begin : begin + 20_000], state)
        for chunk in tokens[:, begin : begin + 20_000].split(1000, 1):
            expected, other = exact(chunk, other)
        assert relative(logits, expected) < 1e-4
        assert relative(state.wkv, other.wkv) < 1e-4
