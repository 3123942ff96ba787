from __future__ import annotations

from dataclasses import replace

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from states import FIELDS

from rwkv_engine import RWKV, RequestError, State
from rwkv_engine.runtime.ragged import read_ragged

LENGTHS = [3, 1, 7, 3, 40, 2]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    weights = oracle.random_weights(Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33))
    return RWKV.from_pretrained(save_pth(weights, tmp_path_factory.mktemp("m") / "m.pth")).engine


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(33, (length,), generator=generator) for length in LENGTHS]


def close(a, b):
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("full_output", [True, False])
@pytest.mark.parametrize("begun", [False, True])
def test_each_text_gives_the_same_result_as_alone(full_output, begun, engine, texts):
    state = engine.initial_state(len(texts))
    if begun:
        _, state = engine.forward(torch.arange(12).view(6, 2), state)
    before = state.clone()
    outputs, after = read_ragged(lambda ids, state: engine.forward(ids, state, full_output), texts, state)
    assert after.position.tolist() == [n + 2 * begun for n in LENGTHS]
    for i, text in enumerate(texts):
        alone, state_alone = engine.forward(text[None], before.rows(slice(i, i + 1)), full_output)
        assert outputs[i].shape == alone[0].shape
        assert close(outputs[i], alone[0])
        assert all(close(getattr(after, name)[i], getattr(state_alone, name)[0]) for name in FIELDS)
    assert all(torch.equal(getattr(state, name), getattr(before, name)) for name in FIELDS), (
        "the given one is unchanged"
    )


def test_states_of_two_models_are_not_joined(engine):
    one = engine.initial_state()
    _, of_model = engine.forward(torch.tensor([[1]]), one)
    assert State.join([one, of_model]).fingerprint == of_model.fingerprint
    assert State.join([one, of_model]).batch == 2
    other = replace(of_model, fingerprint="other")
    with pytest.raises(RequestError, match="states of 2 models cannot be joined"):
        State.join([of_model, other])
