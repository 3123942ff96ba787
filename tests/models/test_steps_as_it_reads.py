"""With int8 weights, decoding tokens one by one gives the bits of reading them at once."""

from __future__ import annotations

import oracle
import oracle7
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape

from rwkv_engine import Checkpoint, Strategy
from rwkv_engine.core.state import State
from rwkv_engine.pipeline import locate
from rwkv_engine.runtime import load_model

SHAPES = [
    Shape(1, 8, 8, 8, 9),
    Shape(3, 40, 56, 100, 21),
    Shape(2, 33, 17, 65, 12),
    Shape(2, 300, 260, 1100, 30),  # fewer groups of inputs than parts
    Shape(1, 48, 48, 8400, 30),  # more
]
SHAPES_7 = [
    oracle7.Shape(1, 1, 8, 9, 9, (1, 1, 1, 1)),
    oracle7.Shape(3, 2, 20, 77, 12, (3, 2, 1, 4)),  # heads are not whole vectors
    oracle7.Shape(2, 2, 64, 300, 21, (16, 33, 8, 40), width=40),
    oracle7.Shape(2, 1, 128, 2100, 12, (9, 32, 17, 65), width=300),
]


def loaded(strategy, path):
    model = load_model(Checkpoint.open(path), Strategy.parse(strategy))
    if not model.layers[0].is_packed:
        pytest.skip("needs compiled kernels")
    return model


def check(model, n=40):
    assert model.steps_as_it_reads
    tokens = torch.randint(model.config.n_vocab, (1, n), generator=torch.Generator().manual_seed(1))
    begin = State.initial(model.config, 1)
    with torch.no_grad():
        for first in (0, 1, 17):  # the tokens that are read before the others are decoded
            state = model.read(tokens[:, :first], begin)[1] if first else begin
            logits = []
            for i in range(first, n):
                one, state = model(tokens[:, i : i + 1], state)
                logits.append(one)
            hidden, read = model.read(tokens, begin)
            assert torch.equal(torch.cat(logits), model.head(model.ln_out(hidden[0, first:])))
            for name, field in read.fields.items():
                assert torch.equal(state.fields[name], field), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_models_of_any_shape(shape, tmp_path):
    check(loaded("cpu fp32i8", save_pth(oracle.random_weights(shape), tmp_path / "m.pth")))


def test_a_trained_model():
    check(loaded("cpu bf16i8", locate("tales")), 200)


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu fp32i4", "cpu fp32i8 *1 -> cpu fp32"])
def test_other_formats_do_not(strategy, tmp_path):
    model = loaded(strategy, save_pth(oracle.random_weights(SHAPES[1]), tmp_path / "m.pth"))
    assert not model.steps_as_it_reads


@pytest.mark.parametrize("strategy", ["cpu fp32i8", "cpu bf16i8", "cpu fp16i8"])
@pytest.mark.parametrize("shape", SHAPES_7, ids=str)
def test_an_rwkv7_of_any_shape(shape, strategy, tmp_path):
    """Its low-rank factors stay floats, whose products are the same functions in both."""
    check(loaded(strategy, save_pth(oracle7.random_weights(shape), tmp_path / "m.pth")))


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16i4"])
def test_an_rwkv7_in_other_formats_does_not(strategy, tmp_path):
    model = loaded(strategy, save_pth(oracle7.random_weights(SHAPES_7[0]), tmp_path / "m.pth"))
    assert not model.steps_as_it_reads
