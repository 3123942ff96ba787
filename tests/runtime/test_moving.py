"""Placed models that move: with kernels there and without, and what is remembered of where they were."""

from __future__ import annotations

import pytest
import torch

from rwkv_engine import Checkpoint, Strategy
from rwkv_engine.models.weights import Dense, InputMajor, Tiled
from rwkv_engine.runtime import Engine, load_model, loader, moving

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def load(source, strategy: str):
    return load_model(Checkpoint.open(source), Strategy.parse(strategy))


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_kernels_find_what_they_read(here, there, source, monkeypatch):
    """Whether there are any for the device it comes from, and for the one it goes to."""
    expected = Engine(load(source, "cpu bf16")).forward(IDS, full_output=True)[0]
    monkeypatch.setattr(loader, "has_kernels", lambda device: here)
    model = load(source, "cpu fp32")
    assert isinstance(model.head, Tiled if here else Dense)
    monkeypatch.setattr(moving, "has_kernels", lambda device: there)
    moving.move_model(model, lambda tensor: tensor.bfloat16())
    assert isinstance(model.head, Tiled if there else Dense)
    assert isinstance(model.blocks[0].ffn.value, InputMajor if there else Dense)
    logits = Engine(model).forward(IDS, full_output=True)[0]
    if there:
        assert torch.equal(logits, expected)
    else:  # plain torch rounds activations to bfloat16 too
        assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert not any(p.requires_grad for p in model.parameters())


def test_int4_weights_are_moved_as_they_are(source):
    model = load(source, "cpu fp32i4")
    before = {name: p.dtype for name, p in model.named_parameters()}
    assert torch.uint8 in before.values()
    moving.move_model(model, lambda tensor: tensor.to("meta"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {name: p.dtype for name, p in model.named_parameters()} == before


def test_int8_weights_are_moved_as_they_are(source):
    """To a device without numbers, which tells where things are; no place or number of before is remembered."""
    model = load(source, "cpu fp32i8")
    Engine(model).forward(IDS[:, :1])
    assert not moving.stays(model, lambda tensor: tensor.to("meta"))
    assert moving.stays(model, lambda tensor: tensor.to("cpu"))
    moving.move_model(model, lambda tensor: tensor.to("meta"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {d.type for d in (*model.device_map.devices, model.device_map.home)} == {"meta"}
    assert {t.device.type for t in model.blocks[0]._fixed.parameters if isinstance(t, torch.Tensor)} == {"meta"}
    assert model.head.tiles.dtype == torch.int8
    assert model.head.scales.dtype == torch.float32
