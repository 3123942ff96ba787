"""What an RWKV-7's weights tell about the inputs of its matrices, against inputs; and that int4 profits from it."""

from __future__ import annotations

import oracle7
import pytest
import torch
from checkpoint_files import as_torch, save_pth

from rwkv_engine import Checkpoint
from rwkv_engine.core.config import Role
from rwkv_engine.models.int4 import quantized_int4
from rwkv_engine.models.rwkv7_noise import input_moments
from rwkv_engine.ops.in_floats import tiles_in_floats

SHAPE = oracle7.Shape(n_layer=2, n_head=2, head_size=64, n_ffn=200, n_vocab=96)


@pytest.fixture(scope="module")
def weights():
    return {name: tensor.squeeze() for name, tensor in as_torch(oracle7.random_weights(SHAPE)).items()}


def test_every_matrix_has_moments(weights, tmp_path):
    config = Checkpoint.open(save_pth(oracle7.random_weights(SHAPE), tmp_path / "m.pth")).config
    for name, spec in config.tensors().items():
        if spec.role in (Role.MATRIX, Role.SPARSE_MATRIX):
            moments = input_moments(name, weights.__getitem__)
            assert (moments.shape, moments.dtype) == (spec.shape[1:], torch.float64), name
            assert (moments >= 0).all()


def test_they_are_those_of_normal_numbers(weights):
    """Up to one factor for each matrix. Inputs are normalised numbers that are not correlated; 40,000 of them."""
    normal = torch.randn(40_000, 128, generator=torch.Generator().manual_seed(0))

    def norm(name: str) -> torch.Tensor:
        return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    unbiased = {name: tensor * (not name.endswith("bias")) for name, tensor in weights.items()}
    of_key = (normal * weights["blocks.1.ln2.weight"]) @ weights["blocks.1.ffn.key.weight"].t()
    inputs = {
        **{f"blocks.1.att.{name}.weight": norm("blocks.1.ln1") for name in ("receptance", "key", "value")},
        "blocks.1.att.output.weight": norm("blocks.1.att.ln_x"),
        "blocks.1.ffn.key.weight": norm("blocks.1.ln2"),
        "blocks.1.ffn.value.weight": of_key.relu().square(),
        "head.weight": norm("ln_out"),
    }
    for name, x in inputs.items():
        # A bias correlates the inputs of a product, so that one is compared without it.
        read = unbiased if name.endswith("ffn.value.weight") else weights
        ratio = x.double().square().mean(0) / input_moments(name, read.__getitem__)
        assert ratio.max() / ratio.min() < (1.35 if name.endswith("ffn.value.weight") else 1.08), name


def test_int4_rounds_better_for_knowing_them(weights):
    """Some channels of the norm are large: the error of the outputs is smaller if int4 knows which."""
    large = dict(weights)
    large["blocks.1.ln1.weight"] = weights["blocks.1.ln1.weight"].clone()
    large["blocks.1.ln1.weight"][5::16] *= 12
    weight = weights["blocks.1.att.key.weight"]
    moments = input_moments("blocks.1.att.key.weight", large.__getitem__)
    errors = []
    for known in (moments, None):
        values, columns = quantized_int4(weight, "tiles", known)
        rounded = tiles_in_floats(values, *weight.shape, columns)
        errors.append((moments * (rounded - weight).double().square()).sum().item())
    assert errors[0] < 0.9 * errors[1], errors
