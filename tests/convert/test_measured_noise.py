"""The noise that int4 causes in single matrices of the embedded model, against the divergence it really causes."""

from __future__ import annotations

import pytest
import torch

from rwkv_engine import Checkpoint
from rwkv_engine.convert import measured_noise as module
from rwkv_engine.convert.measured_noise import N_TEXTS, N_TOKENS, _written, fits_in_memory, measured_noise
from rwkv_engine.core import State, Strategy
from rwkv_engine.models.int4 import quantized_int4
from rwkv_engine.models.rwkv4_noise import input_moments
from rwkv_engine.ops.in_floats import rows_in_floats, tiles_in_floats
from rwkv_engine.runtime import load_model

NAMES = ["blocks.4.att.output.weight", "blocks.0.att.key.weight", "blocks.2.ffn.value.weight", "head.weight"]


@pytest.mark.slow
def test_it_is_the_divergence_of_the_predictions(tales):
    """Up to a factor of two, for it does not know how the effects of one error at several tokens add up."""
    checkpoint = Checkpoint.open(tales.source)
    model = load_model(checkpoint, Strategy.parse("cpu fp32"), trainable=True).requires_grad_(False)
    tokens = _written(model)
    assert tokens.shape == (N_TEXTS, N_TOKENS + 1)

    def predictions() -> torch.Tensor:
        logits, _ = model(tokens[:, :-1], State.initial(model.config, N_TEXTS), full_output=True)
        return torch.log_softmax(logits.double(), -1)

    exact, noise = predictions(), measured_noise(checkpoint, NAMES)
    assert list(noise) == NAMES
    for name in NAMES:
        matrix = model.get_submodule(name.removesuffix(".weight"))
        weight = matrix.weight.clone()
        form = "input_major" if name.endswith("ffn.value.weight") else "tiles"
        values, columns = quantized_int4(weight, form, input_moments(name, checkpoint.read))
        in_floats = rows_in_floats(values, len(weight), columns) if form == "input_major" else None
        matrix.weight.copy_(tiles_in_floats(values, *weight.shape, columns) if in_floats is None else in_floats)
        divergence = (exact.exp() * (exact - predictions())).sum(-1).mean().item()
        assert 0.5 < noise[name] / divergence < 2, name
        matrix.weight.copy_(weight)


def test_a_model_without_room_is_not_measured(tales, monkeypatch):
    checkpoint = Checkpoint.open(tales.source)
    assert fits_in_memory(checkpoint)
    monkeypatch.setattr(module, "free_main_memory", lambda: 4 * checkpoint.config.n_params)
    assert not fits_in_memory(checkpoint)
    monkeypatch.setattr(module, "free_main_memory", lambda: None)
    assert fits_in_memory(checkpoint)
