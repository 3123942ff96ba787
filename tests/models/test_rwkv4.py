"""The model against the float64 oracle and against the two packages that run RWKV-4."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_hugging_face, save_pth
from oracle import Shape

from rwkv_engine import RWKV, Checkpoint, State, Strategy
from rwkv_engine.runtime import load_model

SHAPES = [
    Shape(),
    Shape(n_layer=1, n_embd=24, n_att=24, n_ffn=24, n_vocab=7),
    Shape(n_layer=3, n_embd=40, n_att=56, n_ffn=72, n_vocab=101),  # n_att != n_embd
    Shape(n_layer=2, n_embd=64, n_att=64, n_ffn=256, n_vocab=997),
    Shape(n_layer=5, n_embd=8, n_att=8, n_ffn=100, n_vocab=50),
]


def random_tokens(shape: Shape, n: int = 200, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, shape.n_vocab, n).tolist()


def make(shape: Shape, tmp_path, seed: int = 0) -> tuple[RWKV, dict]:
    weights = oracle.random_weights(shape, seed)
    return RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth")), weights


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_and_state_equal_the_oracle(shape, seed, tmp_path):
    model, weights = make(shape, tmp_path, seed)
    tokens = random_tokens(shape)
    expected, sums = oracle.forward(weights, tokens)
    logits, state = model.forward(tokens, full_output=True)
    assert logits.dtype == torch.float32
    assert np.abs(logits.numpy() - expected).max() / np.abs(expected).max() < 1e-5
    np.testing.assert_allclose(state.att_shift[0], sums["att_shift"], atol=1e-4)
    np.testing.assert_allclose(state.ffn_shift[0], sums["ffn_shift"], atol=1e-4)
    ratio = sums["sum_v"] / sums["sum_1"]
    np.testing.assert_allclose(state.wkv_num[0] / state.wkv_den[0], ratio, atol=1e-4 * np.abs(ratio).max())
    np.testing.assert_allclose(state.wkv_den[0].log() + state.wkv_max[0], np.log(sums["sum_1"]), atol=1e-3)


def test_any_chunking_gives_the_same_logits(tmp_path):
    shape = SHAPES[2]
    model, _ = make(shape, tmp_path)
    tokens = random_tokens(shape, 70)
    whole, state = model.forward(tokens, full_output=True)
    last, last_state = model.forward(tokens)
    scale = whole.abs().max()
    assert (last - whole[-1]).abs().max() / scale < 1e-6
    for chunk in (1, 2, 33, 69):
        model.engine.chunk = chunk
        again, again_state = model.forward(tokens, full_output=True)
        assert (again - whole).abs().max() / scale < 2e-6
        assert (again_state.att_shift - state.att_shift).abs().max() < 1e-5
    step_state = None
    for token in tokens:
        step, step_state = model.forward([token], step_state)
    assert (step - whole[-1]).abs().max() / scale < 2e-6
    assert step_state.position.tolist() == last_state.position.tolist() == [70]


def test_a_batch_is_its_rows(tmp_path):
    shape = SHAPES[0]
    model, _ = make(shape, tmp_path)
    rows = [random_tokens(shape, 20, seed) for seed in range(5)]
    logits, state = model.forward(torch.tensor(rows))
    assert logits.shape == (5, shape.n_vocab)
    more, _ = model.forward(torch.tensor([[1]] * 5), state)
    for i, row in enumerate(rows):
        alone, _ = model.forward([*row, 1])
        assert (alone - more[i]).abs().max() / alone.abs().max() < 2e-6


def test_forward_does_not_change_the_state_it_is_given(tmp_path):
    model, _ = make(SHAPES[0], tmp_path)
    _, state = model.forward([1, 2, 3])
    copy = state.clone()
    first, after = model.forward([4, 5], state)
    second, _ = model.forward([4, 5], state)
    assert torch.equal(first, second)
    for name in ("att_shift", "ffn_shift", "wkv_num", "wkv_den", "wkv_max", "position"):
        assert torch.equal(getattr(state, name), getattr(copy, name))
        assert getattr(state, name).data_ptr() != getattr(after, name).data_ptr()


def test_gradients_of_the_whole_model(tmp_path):
    """In float64 throughout, against difference quotients, for one number of every kind of parameter."""
    checkpoint = Checkpoint.open(save_pth(oracle.random_weights(SHAPES[0]), tmp_path / "m.pth"))
    module = load_model(checkpoint, Strategy.parse("cpu fp32"), trainable=True).double()
    tokens = torch.tensor([random_tokens(SHAPES[0], 6)])
    state = State.initial(checkpoint.config)
    state = replace(state, fields={name: field.double() for name, field in state.fields.items()})

    def loss() -> torch.Tensor:
        return module(tokens, state)[0].square().sum()

    loss().backward()
    for name, parameter in module.named_parameters():
        index = parameter.grad.abs().argmax()
        step = 1e-5
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[index] += step
            high = loss()
            flat[index] -= 2 * step
            low = loss()
            flat[index] += step
        quotient = (high - low).item() / (2 * step)
        assert parameter.grad.view(-1)[index].item() == pytest.approx(quotient, rel=1e-5, abs=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Shape(3, 64, 64, 160, 120), Shape(2, 32, 32, 128, 50)], ids=str)
def test_the_rwkv_package_agrees(shape, tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    peer = pytest.importorskip("rwkv.model", reason="the rwkv package is not installed")
    model, _ = make(shape, tmp_path)
    theirs = peer.RWKV(model=str(tmp_path / "m"), strategy="cpu fp32", verbose=False)
    tokens = random_tokens(shape, 100)
    expected, _ = theirs.forward(tokens, None, full_output=True)
    logits, _ = model.forward(tokens, full_output=True)
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Shape(3, 64, 64, 160, 120), Shape(2, 32, 48, 128, 50)], ids=str)
def test_transformers_agrees(shape, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = save_hugging_face(oracle.random_weights(shape), shape, tmp_path / "hf")
    theirs = transformers.RwkvForCausalLM.from_pretrained(folder, rescale_every=0).eval()
    model = RWKV.from_pretrained(folder)
    tokens = random_tokens(shape, 100)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens]), use_cache=False).logits[0]
    logits, _ = model.forward(tokens, full_output=True)
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-4
