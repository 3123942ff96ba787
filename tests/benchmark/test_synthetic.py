"""Models of random weights have the share of zeros that is asked for, and activations that stay small."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from rwkv_engine import Checkpoint, CheckpointError, Rwkv4Config
from rwkv_engine.benchmark import models
from rwkv_engine.benchmark.instruments import ReadBandwidth
from rwkv_engine.benchmark.models import synthetic_tensors, write_synthetic
from rwkv_engine.benchmark.subject import Ours, random_ids
from rwkv_engine.core import Rwkv7Config
from rwkv_engine.verification.activations import watched

CONFIG = Rwkv4Config(3, 64, 64, 1024, 300)
GOOSE = Rwkv7Config(3, 64, 2, 32, 1024, 300, 8, 8, 8, 8)


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("config", [CONFIG, GOOSE], ids=["rwkv4", "rwkv7"])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 1.0])
def test_the_squared_relu_has_the_share_of_zeros_that_was_asked_for(zeros, config, tmp_path):
    write_synthetic(tmp_path / "m.pth", config, torch.float32, zeros)
    ours = Ours(tmp_path / "m.pth", "cpu fp32")
    found = ours.zeros(random_ids(300, 64))
    # A layer's key matrix has F random rows, so its share varies like that of F samples: allow four standard errors.
    error = 4 * (zeros * (1 - zeros) / config.n_ffn) ** 0.5
    assert found == pytest.approx([zeros] * 3, abs=error + 1e-12)


@pytest.mark.parametrize("config", [CONFIG, GOOSE], ids=["rwkv4", "rwkv7"])
def test_activations_stay_small_over_thousands_of_tokens_in_every_layer(config, tmp_path):
    """In float16 too, which ends at 65504."""
    for zeros in (0.0, 0.9):
        write_synthetic(tmp_path / "m.pth", config, torch.float16, zeros)
        ours = Ours(tmp_path / "m.pth", "cpu fp16")
        with watched(ours.model.engine.model) as seen:
            logits, state = ours.model.forward(random_ids(300, 4000))
        assert max(max(layers) for layers in seen.largest.values()) < 50
        assert logits.abs().max() < 50
        assert max(field.abs().max() for name, field in state.fields.items() if name != "wkv_max") < 1e4
        assert 0.5 < logits.std() < 2


def test_random_weights_are_deterministic_and_differ_between_tensors():
    one, two = (synthetic_tensors(CONFIG, torch.bfloat16, 0.5) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["blocks.0.att.key.weight"].dtype == torch.bfloat16
    assert one["blocks.0.ln1.weight"].dtype == torch.float32
    assert not torch.equal(one["blocks.0.att.key.weight"], one["blocks.1.att.key.weight"])
    assert not torch.equal(one["blocks.0.att.key.weight"], one["blocks.0.att.value.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_default_dtype_makes_no_difference(dtype, default_dtype):
    expected = synthetic_tensors(CONFIG, torch.bfloat16, 0.5)
    default_dtype(dtype)
    found = synthetic_tensors(CONFIG, torch.bfloat16, 0.5)
    assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in expected.items()}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert ReadBandwidth("cpu", size=1 << 16)._numbers.nbytes == 1 << 16


def test_a_full_disk_is_reported_before_weights_are_sampled(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(CheckpointError, match=r"0\.0 GB free, the synthetic model needs .* GB; set TMPDIR"):
        write_synthetic(tmp_path / "m.pth", CONFIG, torch.float32, 0.5)

    def full(tensors, path):
        raise OSError("No space left on device")

    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        write_synthetic(tmp_path / "m.pth", CONFIG, torch.float32, 0.5, save=full)


def test_random_weights_are_a_readable_checkpoint(tmp_path):
    write_synthetic(tmp_path / "m.pth", CONFIG, torch.bfloat16, 0.5)
    assert Checkpoint.open(tmp_path / "m.pth").config == CONFIG
