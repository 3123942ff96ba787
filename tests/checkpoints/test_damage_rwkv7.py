"""RWKV-7 files that lack tensors, or whose tensors contradict each other, in every form of a file."""

from __future__ import annotations

import json
import random

import numpy as np
import oracle7
import pytest
import torch
from checkpoint_files import save_packed, save_pth, save_safetensors
from safetensors import safe_open
from safetensors.torch import save_file

from rwkv_engine import RWKV, Checkpoint, CheckpointError
from rwkv_engine.convert import to_hugging_face

SHAPE = oracle7.Shape(n_layer=2, n_head=2, head_size=8, n_ffn=40, n_vocab=33)
NAMES = list(oracle7.random_weights(SHAPE))
# Their shapes tell the sizes, so that other tensors are named where these are wrong.
TELLING = ["emb.weight", "blocks.0.att.r_k", "blocks.0.ffn.key.weight", "blocks.1.att.v1"]
TELLING += [f"blocks.0.att.{name}1" for name in "wag"]


def refused(path) -> str:
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(path)
    message = str(error.value)
    assert path.name in message
    assert len(message) < 1000
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_is_missing_is_named(name, tmp_path):
    weights = oracle7.random_weights(SHAPE)
    del weights[name]
    message = refused(save_safetensors(weights, tmp_path / "m.safetensors"))
    if name == "blocks.0.att.r_k":  # by which an RWKV-7 is known
        assert "RWKV" in message
    else:
        assert name in message


@pytest.mark.parametrize("change", ["longer", "shorter", "flat", "empty"])
@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_another_shape_is_refused(name, change, tmp_path):
    weights = oracle7.random_weights(SHAPE)
    tensor = weights[name]
    weights[name] = {
        "longer": np.concatenate([tensor, tensor[..., -1:]], -1),
        "shorter": tensor[..., 1:],
        "flat": tensor.reshape(-1)[:-1],
        "empty": tensor[..., :0],
    }[change].copy()
    message = refused(save_safetensors(weights, tmp_path / "m.safetensors"))
    assert "expected" in message or "missing" in message
    if name not in TELLING:
        assert name in message


@pytest.mark.parametrize("kept", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_any_of_layer_0s_unused_tensors_may_be_there_and_have_any_shape(kept, tmp_path):
    """In a Hugging Face directory, too; it also mixes no values and has none of the factors there."""
    plain = oracle7.random_weights(SHAPE)
    expected = RWKV.from_pretrained(save_pth(plain, tmp_path / "p.pth"))
    full = oracle7.random_weights(SHAPE, unused=True)
    for shape in (None, (3,), (0, 4)):
        extra = {f"blocks.0.att.v{i}": full[f"blocks.0.att.v{i}"] if shape is None else np.ones(shape) for i in kept}
        model = RWKV.from_pretrained(save_pth(plain | extra, tmp_path / "m.pth"))
        assert model.fingerprint == expected.fingerprint
        assert torch.equal(model.forward([1, 2])[0], expected.forward([1, 2])[0])


@pytest.mark.parametrize("layers", [1, 2])
def test_a_layer_that_is_missing_is_named(layers, tmp_path):
    weights = oracle7.random_weights(oracle7.Shape(3, 2, 8, 40, 33))
    left = {name: w for name, w in weights.items() if not name.startswith(f"blocks.{layers}.")}
    if layers == 2:  # a whole model of two layers
        assert Checkpoint.open(save_pth(left, tmp_path / "m.pth")).config.n_layer == 2
    else:
        assert "blocks.1." in refused(save_pth(left, tmp_path / "m.pth"))


@pytest.mark.parametrize("strategy", [None, "cpu fp32i8"])
def test_a_packed_file_of_other_sizes_is_refused(strategy, tmp_path):
    """Tensors of one packed file in another one, whose heads have twice as many channels."""
    wide = oracle7.random_weights(oracle7.Shape(2, 1, 16, 40, 33))
    one = save_packed(oracle7.random_weights(SHAPE), tmp_path / "a.safetensors", strategy)
    other = save_packed(wide, tmp_path / "b.safetensors", strategy)
    with safe_open(one, "pt") as file, safe_open(other, "pt") as second:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
        [name] = [name for name in tensors if name.endswith("blocks.0.att.r_k")]
        tensors[name] = second.get_tensor(name)
    save_file(tensors, tmp_path / "c.safetensors", metadata)
    assert "r_k" in refused(tmp_path / "c.safetensors")


SETTINGS = {
    "model_type": "rwkv",
    "vocab_size": 34,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "decay_low_rank_dim": 8,
    "a_low_rank_dim": 8,
    "v_low_rank_dim": 8,
    "gate_low_rank_dim": 8,
    "norm_eps": "small",
}


@pytest.mark.parametrize("key", SETTINGS)
def test_a_config_that_disagrees_is_refused(key, tmp_path):
    to_hugging_face(save_pth(oracle7.random_weights(SHAPE), tmp_path / "m.pth"), tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: SETTINGS[key]}))
    assert key in refused(tmp_path / "hf")


@pytest.mark.parametrize("form", ["pth", "safetensors", "packed"])
def test_a_file_cut_anywhere_is_refused(form, tmp_path):
    save = {"pth": save_pth, "safetensors": save_safetensors, "packed": save_packed}[form]
    path = save(oracle7.random_weights(SHAPE), tmp_path / ("m.pth" if form == "pth" else "m.safetensors"))
    whole, rng = path.read_bytes(), random.Random(form)
    for length in (0, 1, 8, 200, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(30))):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name):
            RWKV.from_pretrained(path)
