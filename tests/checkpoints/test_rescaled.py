"""Weights that transformers divided before it saved them: seen, said, and multiplied back."""

from __future__ import annotations

import json

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import as_torch, save_hugging_face, save_pth, settings
from oracle import Shape

from rwkv_engine import RWKV, Checkpoint, CheckpointError
from rwkv_engine.checkpoints.rescaled import goes_down, looks_divided, staircase
from rwkv_engine.convert import to_hugging_face, to_pth
from rwkv_engine.convert.pack import pack
from rwkv_engine.pipeline import EMBEDDED

SHAPE = Shape(n_layer=12, n_embd=16, n_att=16, n_ffn=40, n_vocab=33)
DIVIDED = ("att.output.weight", "ffn.value.weight")


def divided(weights, every):
    return {
        name: value / 2.0 ** (int(name.split(".")[1]) // every) if name.endswith(DIVIDED) else value
        for name, value in weights.items()
    }


def directory(weights, folder, every, shape=SHAPE):
    save_hugging_face(weights, shape, folder)
    (folder / "config.json").write_text(json.dumps(settings(shape) | {"rescale_every": every}))
    return folder


def verdicts(n_layer, every, spread, is_divided, n=150, first=1.0, last=1.0):
    """How often it is taken for divided, of `n` models whose layers vary by a factor of 1 +- spread, over a trend; the
    first and the last by another factor besides."""
    rng, seen = np.random.default_rng(n_layer * 100 + every), 0
    for _ in range(n):
        layers = np.arange(n_layer)
        own = np.log2(1 + rng.uniform(-spread, spread, (2, n_layer)))
        own[:, 0] += np.log2(first)
        own[:, -1] += np.log2(last)
        trend = rng.normal(0, 1, (2, 1)) * layers / n_layer
        y = own + trend - is_divided * (layers // every)
        seen += goes_down(torch.from_numpy(y), every)
    return seen / n


# Layers, R, spread; the largest share of whole models taken for divided, and of divided ones missed.
RATES = [
    (24, 6, 0.4, 0.01, 0.06),
    (32, 6, 0.4, 0.01, 0.02),
    (40, 6, 0.4, 0.01, 0.01),
    (12, 6, 0.4, 0.01, 0.75),
    (12, 6, 0.2, 0.0, 0.01),
    (24, 6, 0.2, 0.0, 0.0),
    (8, 2, 0.1, 0.0, 0.0),
]


@pytest.mark.parametrize(("n_layer", "every", "spread", "wrong", "missed"), RATES)
def test_rates_of_wrong_and_missed_detections(n_layer, every, spread, wrong, missed):
    assert verdicts(n_layer, every, spread, False) <= wrong
    assert verdicts(n_layer, every, spread, True) >= 1 - missed


@pytest.mark.parametrize(("first", "last"), [(3, 1), (1 / 3, 1), (1, 1 / 3), (3, 1 / 3), (1 / 3, 3)])
@pytest.mark.parametrize("n_layer", [12, 24])
def test_first_and_last_layers_may_be_unlike_all_others(first, last, n_layer):
    assert verdicts(n_layer, 6, 0.2, False, 50, first, last) == 0
    assert verdicts(n_layer, 6, 0.2, True, 50, first, last) == 1


def test_the_staircase_is_measured_independently_of_the_curve():
    layers = torch.arange(24, dtype=torch.float64)
    curve = torch.stack([layers / 5, 3 - layers**2 / 100])
    for s in (0.0, 1.0, 0.25):
        slope, error = staircase(curve - s * (layers // 6), 6)
        assert slope == pytest.approx(s, abs=1e-9)
        assert error < 1e-9
    assert staircase(curve, 1) == (0.0, float("inf")), "a staircase with a step at each layer is a slope"
    assert staircase(curve[:, :3], 2) == (0.0, float("inf")), "three numbers are a curve whatever they are"
    assert staircase(torch.full((2, 24), -float("inf"), dtype=torch.float64), 6) == (0.0, float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("every", [2, 3, 6])
def test_divided_random_weights_are_recognised(seed, every, tmp_path):
    """Each layer's matrices larger or smaller by up to a fifth."""
    rng = np.random.default_rng(seed)
    weights = {
        name: (value * rng.uniform(0.8, 1.2)).astype(np.float32) if name.endswith(DIVIDED) else value
        for name, value in oracle.random_weights(SHAPE, seed).items()
    }
    assert not looks_divided(Checkpoint.open(directory(weights, tmp_path / "whole", every)))
    halved = divided(weights, every)
    assert looks_divided(Checkpoint.open(directory(halved, tmp_path / "divided", every)))
    for other in (0, 1, -6, 12):
        assert not looks_divided(Checkpoint.open(directory(halved, tmp_path / "divided", other)))
    assert not looks_divided(Checkpoint.open(save_pth(halved, tmp_path / "m.pth")))


def test_the_trained_model_is_not_taken_for_divided(tmp_path):
    """Five layers are too few to be sure that one is, either."""
    to_hugging_face(EMBEDDED["tales"], tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for every in range(1, 5):
        (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"rescale_every": every}))
        assert not looks_divided(Checkpoint.open(tmp_path / "hf"))


def test_zero_matrices_count_as_not_divided(tmp_path):
    weights = oracle.random_weights(SHAPE)
    weights |= {name: 0 * value for name, value in weights.items() if name.endswith(DIVIDED)}
    assert not looks_divided(Checkpoint.open(directory(weights, tmp_path / "hf", 6)))


@pytest.mark.parametrize("every", ["6", 1.5, [6], None])
def test_an_invalid_rescale_every_is_refused(every, tmp_path):
    with pytest.raises(CheckpointError, match=r"rescale_every: got .*, expected an integer"):
        Checkpoint.open(directory(oracle.random_weights(SHAPE), tmp_path / "hf", every))


def test_a_missing_rescale_every_means_the_default_of_transformers(tmp_path):
    folder = directory(oracle.random_weights(SHAPE), tmp_path / "hf", 6)
    config = settings(SHAPE)
    del config["rescale_every"]
    (folder / "config.json").write_text(json.dumps(config))
    assert Checkpoint.open(folder).rescale_every == 6
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    assert Checkpoint.open(folder).rescale_every == 0


@pytest.fixture(scope="module")
def saved_divided(tmp_path_factory):
    """What transformers saves after it has run, and the weights before that."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("divided")
    weights = oracle.random_weights(SHAPE)
    directory(weights, folder / "before", 6)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "before").eval()
    with torch.no_grad():
        theirs(torch.tensor([[1, 2, 3]]))
    theirs.save_pretrained(folder / "after")
    return folder / "after", weights


@pytest.mark.slow
def test_divided_weights_are_reported_and_multiplied_back(saved_divided, tmp_path, capfd):
    folder, weights = saved_divided
    note = f"rwkv_engine: {folder}: transformers seems to have divided its weights before saving them"
    RWKV.from_pretrained(folder)
    said = capfd.readouterr().err
    assert said.count(note) == 1
    assert said[said.index(note) :].splitlines()[0].endswith("rwkv-engine convert --undo-rescale")
    pack(folder, tmp_path / "p.safetensors")
    assert note in capfd.readouterr().err
    to_pth(folder, tmp_path / "m.pth", undo_rescale=True)
    to_hugging_face(folder, tmp_path / "hf", undo_rescale=True)
    for path in (tmp_path / "m.pth", tmp_path / "hf"):
        checkpoint = Checkpoint.open(path)
        for name, value in as_torch(weights).items():
            assert torch.equal(checkpoint.read(name), value.squeeze()), name
        RWKV.from_pretrained(path)
        assert "divided" not in capfd.readouterr().err


def test_converting_divided_weights_asks_what_to_do(saved_divided, tmp_path, call):
    folder, weights = saved_divided
    output = tmp_path / "hf"
    arguments = "convert", "--checkpoint-file", str(folder), "--output-dir", str(output)
    code, _, errors = call(*arguments)
    assert code == 1
    assert len(errors.splitlines()) == 1
    assert "--undo-rescale, or convert them as they are with --no-undo-rescale" in errors
    assert not output.exists()
    assert call(*arguments, "--no-undo-rescale")[0] == 0
    name = "blocks.11.att.output.weight"
    assert torch.equal(Checkpoint.open(output).read(name), torch.from_numpy(weights[name]) / 2)
    assert call(*arguments, "--undo-rescale")[0] == 0
    assert torch.equal(Checkpoint.open(output).read(name), torch.from_numpy(weights[name]))
    code, _, errors = call(*arguments[:2], str(output), *arguments[3:], "--undo-rescale")
    assert (code, len(errors.splitlines())) == (1, 1)
    assert "--undo-rescale needs a config.json with a rescale_every above 0" in errors
