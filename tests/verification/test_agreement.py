"""Agreement with other programs: a real one, one that disagrees, and one that cannot run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_packed, save_pth
from oracle import Shape

from rwkv_engine.verification import Check, agreement, baselines, verify


@pytest.mark.slow
def test_the_rwkv_package_agrees_on_a_bfloat16_file(tmp_path):
    """The package would normalise a bfloat16 embedding in bfloat16, an error above what is allowed here."""
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    path = save_pth(oracle.random_weights(Shape(n_vocab=256)), tmp_path / "m.pth", torch.bfloat16)
    checks = {check.name: check for check in verify(path)}
    assert checks["rwkv"].verdict == "ok"
    assert checks["rwkv"].numbers["difference"] < 1e-4
    assert checks["rwkv"].numbers["same_tokens"] == checks["rwkv"].numbers["tokens"] == 41
    assert "Hugging Face directories" in checks["transformers"].what
    assert checks["transformers"].verdict == "skipped"
    assert set(checks["peak memory"].numbers) == {"ours", "transformers", "rwkv"}


@pytest.mark.parametrize("prefix", ["", "_forward_module."])
def test_the_rwkv_package_gets_the_model_out_of_a_trainers_file(prefix, tmp_path):
    weights = {name: torch.from_numpy(w) for name, w in oracle.random_weights(Shape(n_vocab=256)).items()}
    path = tmp_path / "m.pth"
    torch.save({"state_dict": {f"{prefix}{name}": w for name, w in weights.items()}, "epoch": 3}, path)
    found = baselines.rwkv_tensors(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name].flatten(), w.flatten()) for name, w in weights.items())


@pytest.mark.parametrize("precision", ["fp32i8", "fp32i4"])
def test_the_rwkv_package_gets_the_weights_of_a_quantised_file(precision, tmp_path):
    weights = oracle.random_weights(Shape(n_vocab=256))
    found = baselines.rwkv_tensors(save_packed(weights, tmp_path / "m.safetensors", f"cpu {precision}"))
    for name, weight in weights.items():
        assert found[name].dtype == torch.float32
        assert np.abs(found[name].numpy().ravel() - weight.ravel()).max() < 0.1 * np.abs(weight).max()


def answering(monkeypatch, answer):
    """The rwkv package replaced by `answer`, called in a thread."""
    monkeypatch.setattr(agreement, "ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    monkeypatch.setattr(agreement, "RUNNERS", {"rwkv": lambda path, ids: answer(len(ids))})
    monkeypatch.setattr(agreement, "version", lambda name: "0.0")
    monkeypatch.setattr(baselines, "find_spec", lambda name: True)


def asked(config, logits, tolerance=1e-3) -> Check:
    return agreement.check_baseline("rwkv", "m.pth", config, list(range(len(logits))), logits, 2, tolerance)


def test_a_program_that_disagrees_fails_the_check(monkeypatch, tales):
    logits = torch.tensor([[0.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    answering(monkeypatch, lambda n: ((logits + torch.tensor([0.0, 1.6])).numpy(), 7))
    check = asked(tales.config, logits)
    assert check.verdict == "FAILED"
    assert check.numbers == {
        "difference": pytest.approx(1.6 / 5.6),
        "same_tokens": 0,
        "tokens": 2,
        "peak_memory": 7,
    }
    assert asked(tales.config, logits, tolerance=0.3).verdict == "ok"
    answering(monkeypatch, lambda n: (np.full((3, 2), np.nan, np.float32), None))
    assert asked(tales.config, logits, tolerance=0.3).verdict == "FAILED"


def test_a_program_that_cannot_run_is_skipped_with_the_reason(monkeypatch, tales):
    def broken(n):
        raise KeyError("blocks.0\nmore")

    answering(monkeypatch, broken)
    logits = torch.ones(3, 2)
    check = asked(tales.config, logits)
    assert (check.verdict, check.what) == ("skipped", "not checked: rwkv 0.0 failed: KeyError: 'blocks.0\\nmore'")
    for config in (replace(tales.config, n_att=8), replace(tales.config, layer_norm_eps=1e-6)):
        assert asked(config, logits).what.startswith("not checked: the rwkv package ")
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    assert asked(tales.config, logits).what == "not checked: rwkv is not installed"
