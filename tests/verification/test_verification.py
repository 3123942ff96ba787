"""`verify` passes sound checkpoints and finds what is wrong with others."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_hugging_face, save_pth, save_safetensors
from oracle import Shape

from rwkv_engine import RWKV, State, StrategyError
from rwkv_engine.models import Rwkv4
from rwkv_engine.verification import Check, agreement, run, verify
from rwkv_engine.verification.activations import Activations
from rwkv_engine.verification.check import relative_difference

BYTES = Shape(n_vocab=256)  # a vocabulary of 256 reads bytes
WEIGHTS = oracle.random_weights(BYTES)
FORMATS = {
    "zip .pth": lambda folder: save_pth(WEIGHTS, folder / "m.pth", torch.bfloat16),
    "legacy .pth": lambda folder: save_pth(WEIGHTS, folder / "m.pth", legacy=True),
    "safetensors": lambda folder: save_safetensors(WEIGHTS, folder / "m.safetensors"),
    "Hugging Face directory": lambda folder: save_hugging_face(WEIGHTS, BYTES, folder / "m", kind="bin", shards=2),
}


@pytest.fixture
def alone(monkeypatch):
    """Leaves out other programs, whose processes take seconds."""
    monkeypatch.setattr(run, "RUNNERS", {})


def by_name(path, *arguments) -> dict[str, Check]:
    return {check.name: check for check in verify(path, *arguments)}


def scaled(state: State, name: str, factor: float) -> State:
    return replace(state, fields={**state.fields, name: state.fields[name] * factor})


def failed(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.verdict == "FAILED"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_sound_checkpoint_in_every_format(kind, tmp_path):
    path = FORMATS[kind](tmp_path)
    progress = []
    checks = {check.name: check for check in verify(path, progress=lambda *step: progress.append(step))}
    assert failed(checks) == []
    assert checks["file"].numbers == {"path": str(path), "format": kind}
    model = RWKV.from_pretrained(path)
    for name in ("n_layer", "n_embd", "n_att", "n_ffn", "n_vocab", "n_params"):
        assert checks["model"].numbers[name] == getattr(model.config, name)
    assert checks["model"].numbers["fingerprint"] == model.fingerprint
    dtype = "bfloat16" if kind == "zip .pth" else "float32"
    assert checks["stored as"].numbers == {dtype: model.config.n_params}
    assert checks["sample"].numbers["text"] == model.generate(run.PROMPT, 40, temperature=0)
    assert not checks["sample"].numbers["text"].isprintable()
    assert checks["sample"].what.isprintable()
    assert {what for what, _, _ in progress} >= {"loading", "generating", "prefilling", "timing"}
    for name in ("decode = prefill", "state file", "activations"):
        assert checks[name].verdict == "ok"


@pytest.mark.usefixtures("alone")
def test_activation_statistics_equal_those_of_the_oracle(tmp_path):
    checks = by_name(save_pth(WEIGHTS, tmp_path / "m.pth"))
    ids = [*run.PROMPT.encode(), *checks["sample"].numbers["tokens"]]
    _, seen = oracle.forward(WEIGHTS, ids)
    shares = (seen["ffn_k"] <= 0).mean(axis=-1)  # (T, L): the squared relu is zero just there
    layers = checks["squared relu"].numbers["layers"]
    for layer, share in zip(layers, shares.T, strict=True):
        expected = {"min": share.min(), "mean": share.mean(), "max": share.max()}
        assert layer == pytest.approx(expected, abs=1e-4)
        assert layer["min"] < layer["mean"] < layer["max"]
    for name in ("residual", "att_k", "ffn_k"):
        largest = np.abs(seen[name]).max(axis=(0, 2))
        assert checks["activations"].numbers[name] == pytest.approx(largest.tolist(), rel=1e-4)
    assert checks["float16"].numbers == {"residual": [], "ffn_k": []}


@pytest.mark.usefixtures("alone")
def test_values_beyond_float16_are_reported(tmp_path):
    weights = dict(WEIGHTS)
    weights["blocks.1.ffn.key.weight"] = weights["blocks.1.ffn.key.weight"] * 200
    weights["blocks.1.ffn.value.weight"] = weights["blocks.1.ffn.value.weight"] / 200
    checks = by_name(save_pth(weights, tmp_path / "m.pth"))
    assert checks["float16"].numbers == {"residual": [], "ffn_k": [1]}
    assert "ffn k above 255.9 in layers 1" in checks["float16"].what
    assert failed(checks) == []


@pytest.mark.usefixtures("alone")
def test_overflow_of_float32_fails_and_names_the_layer(tmp_path):
    weights = dict(WEIGHTS)
    weights["blocks.1.ffn.key.weight"] = weights["blocks.1.ffn.key.weight"] * 1e25
    checks = by_name(save_pth(weights, tmp_path / "m.pth"))
    assert failed(checks) == ["decode = prefill", "state file", "activations"]
    assert checks["activations"].what == "not finite: residual in layer 1"
    assert checks["activations"].numbers["residual"][1] is None
    for check in checks.values():
        json.dumps(check.numbers, allow_nan=False)


@pytest.mark.usefixtures("alone")
def test_a_damaged_file_ends_the_checks(tmp_path):
    weights = dict(WEIGHTS) | {"blocks.1.ln1.bias": np.full(BYTES.n_embd, np.inf, np.float32)}
    *before, last = verify(save_pth(weights, tmp_path / "m.pth"))
    assert [check.verdict for check in before] == ["ok", "ok", "info", "ok"]
    assert (last.name, last.verdict) == ("loading", "FAILED")
    assert "blocks.1.ln1.bias: 16 of 16 numbers are NaN or infinite" in last.what
    (tmp_path / "text.pth").write_text("no checkpoint")
    [only] = verify(tmp_path / "text.pth")
    assert only.verdict == "FAILED"
    assert "damaged, or not a checkpoint" in only.what


@pytest.mark.usefixtures("alone")
def test_a_tokenizer_of_another_model_fails_and_the_rest_goes_on(tmp_path, tales):
    folder = save_hugging_face(WEIGHTS, BYTES, tmp_path / "m")
    checks = by_name(folder, "cpu fp32", tales.source / "tokenizer.json")
    assert failed(checks) == ["tokenizer"]
    assert "has 2048 tokens, the model's vocabulary is 256" in checks["tokenizer"].what
    assert checks["sample"].verdict == "skipped"
    assert checks["decode = prefill"].verdict == "ok"


@pytest.mark.usefixtures("alone")
def test_a_tokenizer_that_loses_text_fails(tmp_path, tales):
    settings = json.loads((tales.source / "tokenizer.json").read_text())
    (tmp_path / "lower.json").write_text(json.dumps(settings | {"normalizer": {"type": "Lowercase"}}))
    checks = by_name(tales.source, "cpu fp32", tmp_path / "lower.json")
    assert failed(checks) == ["tokenizer"]
    assert "a text changes when it is encoded and decoded" in checks["tokenizer"].what


@pytest.mark.usefixtures("alone")
def test_without_a_tokenizer_random_ids_are_read(tmp_path):
    checks = by_name(save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth"))
    assert failed(checks) == []
    assert checks["tokenizer"].verdict == checks["sample"].verdict == "skipped"
    assert checks["decode = prefill"].verdict == "ok"


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("wrong", ["logits", "state"])
def test_decode_steps_that_differ_from_prefill_fail(wrong, tmp_path, monkeypatch):
    forward, n_read = Rwkv4.forward, len(run.PROMPT) + run.N_NEW

    def disturbed(self, tokens, state, full_output=False):
        logits, after = forward(self, tokens, state, full_output)
        if tokens.shape[1] == 1 and wrong == "logits":
            logits = logits * 1.01
        if tokens.shape[1] == 1 and wrong == "state" and after.position.item() == n_read:  # no logits come after it
            after = scaled(after, "wkv_den", 1.01)
        return logits, after

    monkeypatch.setattr(Rwkv4, "forward", disturbed)
    checks = by_name(save_pth(WEIGHTS, tmp_path / "m.pth"))
    assert checks["decode = prefill"].verdict == "FAILED"
    assert checks["decode = prefill"].numbers[wrong] > 1e-3


@pytest.mark.usefixtures("alone")
def test_a_state_file_that_changes_the_state_fails(tmp_path, monkeypatch):
    load = State.load
    monkeypatch.setattr(State, "load", lambda path: scaled(load(path), "att_shift", 1.0001))
    assert failed(by_name(save_pth(WEIGHTS, tmp_path / "m.pth"))) == ["state file"]


def test_a_strategy_that_cannot_run_is_an_error(tales):
    for strategy in ("cuda fp16", "cpu fp32 *9"):
        with pytest.raises(StrategyError):
            list(verify(tales.source, strategy))


def test_the_model_is_freed_before_other_programs_run(tmp_path, monkeypatch):
    alive = []
    load_model = run.load_model

    def loading(*arguments):
        model = load_model(*arguments)
        alive.append(weakref.ref(model))
        return model

    def check_baseline(name, *arguments):
        assert [model() for model in alive] == [None]
        return Check(name, "info", "")

    monkeypatch.setattr(run, "load_model", loading)
    monkeypatch.setattr(run, "check_baseline", check_baseline)
    assert set(agreement.RUNNERS) < set(by_name(save_pth(WEIGHTS, tmp_path / "m.pth")))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_default_dtype_does_not_round_activations(dtype):
    seen = Activations(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for largest in (1.0009765625, 0.5):
            seen.add_extremes("residual", 0, torch.tensor([largest], dtype=torch.float32))
        seen.add_zeros(0, torch.eye(3, dtype=torch.float32)[None])
        zeros = next(seen.checks()).numbers["layers"][0]["mean"]
    finally:
        torch.set_default_dtype(before)
    assert seen.largest["residual"] == [1.0009765625]
    assert zeros == pytest.approx(2 / 3, abs=1e-6)


def test_a_difference_is_relative_and_infinite_where_a_number_is_not_finite():
    expected = torch.tensor([1.0, -4.0])
    assert relative_difference(torch.tensor([1.0, -5.0]), expected) == 0.25
    for wrong in (math.nan, math.inf):
        assert relative_difference(torch.tensor([wrong, 0.0]), expected) == math.inf
        assert relative_difference(expected, torch.tensor([wrong, 0.0])) == math.inf
