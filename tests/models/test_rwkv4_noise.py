"""What an RWKV-4's weights tell about the inputs of its matrices, against inputs; and what counts as noise."""

from __future__ import annotations

import oracle
import pytest
import torch
from checkpoint_files import as_torch
from oracle import Shape

from rwkv_engine.core.config import Role
from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.models.int4 import Int4Error
from rwkv_engine.models.rwkv4_noise import input_moments, noise

SHAPE = Shape(n_layer=2, n_embd=64, n_att=48, n_ffn=150, n_vocab=33)
CONFIG = Rwkv4Config(2, 64, 48, 150, 33)


@pytest.fixture(scope="module")
def weights():
    return {name: tensor.squeeze() for name, tensor in as_torch(oracle.random_weights(SHAPE)).items()}


def test_every_matrix_has_moments(weights):
    for name, spec in CONFIG.tensors().items():
        if spec.role in (Role.MATRIX, Role.SPARSE_MATRIX):
            moments = input_moments(name, weights.__getitem__)
            assert moments.shape == spec.shape[1:], name
            assert moments.dtype == torch.float64
            assert (moments >= 0).all()


def test_they_are_those_of_normal_numbers(weights):
    """Up to one factor for each matrix. Inputs are normalised numbers that are not correlated; 40,000 of them."""
    normal = torch.randn(40_000, 64, generator=torch.Generator().manual_seed(0))

    def norm(name: str) -> torch.Tensor:
        return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    att, ffn = norm("blocks.1.ln1"), norm("blocks.1.ln2")
    # A bias is the same in all inputs, so it correlates them: products are compared without it.
    of_value = (normal * weights["blocks.1.ln1.weight"]) @ weights["blocks.1.att.value.weight"].t()
    of_key = (normal * weights["blocks.1.ln2.weight"]) @ weights["blocks.1.ffn.key.weight"].t()
    inputs = {
        "blocks.1.att.key.weight": att,
        "blocks.1.att.value.weight": att,
        "blocks.1.att.receptance.weight": att,
        "blocks.1.ffn.key.weight": ffn,
        "blocks.1.ffn.receptance.weight": ffn,
        "blocks.1.att.output.weight": of_value,
        "blocks.1.ffn.value.weight": of_key.relu().square(),
        "head.weight": norm("ln_out"),
    }
    unbiased = {name: tensor * (not name.endswith("bias")) for name, tensor in weights.items()}
    for name, x in inputs.items():
        read = unbiased if name.endswith(("output.weight", "ffn.value.weight")) else weights
        ratio = x.double().square().mean(0) / input_moments(name, read.__getitem__)
        # The relative error of a mean square of n normal numbers is sqrt(2 / n) = 0.007, of their fourth powers larger.
        assert ratio.max() / ratio.min() < (1.35 if name.endswith("ffn.value.weight") else 1.08), name


def test_the_file_is_not_modified(weights):
    double = {name: tensor.double() for name, tensor in weights.items()}
    before = {name: tensor.clone() for name, tensor in double.items()}
    for name in ("blocks.0.att.output.weight", "blocks.0.ffn.value.weight", "head.weight"):
        input_moments(name, double.__getitem__)
    assert all(torch.equal(double[name], before[name]) for name in double)


def test_noise_of_the_head_counts_for_all_halves_and_that_of_gates_is_absolute():
    error, larger = Int4Error(absolute=0.5, relative=0.01), Int4Error(absolute=5.0, relative=0.01)
    of_half = noise(CONFIG, "blocks.0.att.output.weight", error)
    assert noise(CONFIG, "head.weight", error) == 2 * CONFIG.n_layer * of_half
    for name in ("att.key", "att.receptance", "ffn.receptance"):
        name = f"blocks.1.{name}.weight"
        assert noise(CONFIG, name, larger) == pytest.approx(10 * noise(CONFIG, name, error))
    for name in ("att.value", "att.output", "ffn.key", "ffn.value"):
        assert noise(CONFIG, f"blocks.1.{name}.weight", larger) == of_half
