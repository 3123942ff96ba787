from __future__ import annotations

import json
import os
import pickle
import zipfile

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import as_torch, save_hugging_face, save_packed, save_pth, save_safetensors, settings
from oracle import Shape

from rwkv_engine import RWKV, Checkpoint, CheckpointError

SHAPE = Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)


@pytest.fixture(scope="module")
def weights():
    return oracle.random_weights(SHAPE)


def write(kind, weights, tmp_path):
    match kind:
        case "pth":
            return save_pth(weights, tmp_path / "model.pth")
        case "legacy":
            return save_pth(weights, tmp_path / "model.pth", legacy=True)
        case "safetensors":
            return save_safetensors(weights, tmp_path / "model.safetensors")
        case "packed":
            return save_packed(weights, tmp_path / "model.safetensors")
        case "folder with one pth":
            return save_pth(weights, tmp_path / "model.pth").parent
        case _:
            form, shards, prefix = kind
            return save_hugging_face(weights, SHAPE, tmp_path / "hf", kind=form, shards=shards, prefix=prefix)


KINDS = [
    "pth",
    "legacy",
    "safetensors",
    "packed",
    "folder with one pth",
    *[(form, shards, prefix) for form in ("safetensors", "bin") for shards in (1, 3) for prefix in (True, False)],
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_format_holds_the_same_model(kind, weights, tmp_path):
    checkpoint = Checkpoint.open(write(kind, weights, tmp_path))
    config = checkpoint.config
    assert (config.n_layer, config.n_embd, config.n_att, config.n_ffn, config.n_vocab) == (2, 16, 24, 40, 33)
    assert config.n_params == sum(value.size for value in weights.values())
    for name in checkpoint.names:
        np.testing.assert_array_equal(checkpoint.read(name).numpy(), weights[name].squeeze())


def test_the_fingerprint_is_the_models_not_the_files(weights, tmp_path):
    prints = set()
    for i, kind in enumerate(["pth", "legacy", "safetensors", "packed", ("bin", 3, False)]):
        (tmp_path / str(i)).mkdir()
        prints.add(Checkpoint.open(write(kind, weights, tmp_path / str(i))).fingerprint())
    assert len(prints) == 1
    other = oracle.random_weights(SHAPE, seed=1)
    assert Checkpoint.open(save_pth(other, tmp_path / "o.pth")).fingerprint() not in prints


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_read(dtype, weights, tmp_path):
    path = save_pth(weights, tmp_path / "m.pth", dtype)
    model = RWKV.from_pretrained(path).engine.model
    expected = torch.from_numpy(weights["head.weight"]).to(dtype).float()
    assert torch.equal(model.head.weight, expected)


def test_one_layer_and_a_vocabulary_of_one(tmp_path):
    weights = oracle.random_weights(Shape(1, 8, 8, 8, 1))
    logits, _ = RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth")).forward([0, 0])
    assert logits.shape == (1,)


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused(legacy, weights, tmp_path):
    marker = tmp_path / "executed"
    content = as_torch(weights) | {"emb.weight": Attack(marker)}
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="would run code"):
        RWKV.from_pretrained(path)
    path.write_bytes(pickle.dumps(Attack(marker), protocol=2))
    with pytest.raises(CheckpointError):
        RWKV.from_pretrained(path)
    assert not marker.exists()
    torch.load(save_and_return(content, tmp_path / "loud.pth"), weights_only=False)  # the attack itself does work
    assert marker.exists()


def save_and_return(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.ln2.bias"), "tensors are missing: blocks.1.ln2.bias"),
        (lambda w: w.update({"ln_out.weight": np.zeros(5, np.float32)}), r"ln_out.weight: got shape \(5,\), expected"),
        (lambda w: w.update({"extra": np.zeros(5, np.float32)}), "tensors RWKV-4 does not have: extra"),
        (lambda w: w.update({"blocks.0.att.time_maa_k": np.zeros(5, np.float32)}), "this is RWKV-6"),
        (lambda w: w.update({"blocks.0.att.ln_x.weight": np.zeros(5, np.float32)}), "this is RWKV-5"),
        (lambda w: w.update({"blocks.0.att.x_r": np.zeros(5, np.float32)}), "this is RWKV-7"),
        (lambda w: w.update({"head_q.weight": np.zeros(5, np.float32)}), "head_qk"),
        (lambda w: w.pop("emb.weight"), "not an RWKV-4 checkpoint"),
        (lambda w: w.update({"head.weight": np.zeros((33, 16), np.int64)}), "expected a floating-point tensor"),
        (lambda w: w.update({"ln_out.weight": np.zeros((2, 8), np.float32)}), r"ln_out.weight: got shape \(2, 8\)"),
        (lambda w: w.update({n: np.zeros((0, 16), np.float32) for n in ("emb.weight", "head.weight")}), "sizes > 0"),
    ],
)
def test_wrong_tensors_are_named(change, message, weights, tmp_path):
    weights = dict(weights)
    change(weights)
    path = tmp_path / "m.pth"
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, path)
    with pytest.raises(CheckpointError, match=message):
        RWKV.from_pretrained(path)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: t.to("meta"), "meta"),
        (lambda t: "text", "expected a dictionary of tensors"),
    ],
)
def test_tensors_that_hold_no_numbers_are_refused(wrap, message, weights, tmp_path):
    tensors = as_torch(weights)
    tensors["head.weight"] = wrap(tensors["head.weight"])
    torch.save(tensors, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message):
        RWKV.from_pretrained(tmp_path / "m.pth")


def test_weights_under_an_unknown_name_come_with_the_way_to_save_them_alone(weights, tmp_path):
    torch.save({"net": as_torch(weights), "epoch": 3}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"found net: dict; .* save torch\.load\(FILE\)\['net'\] alone"):
        RWKV.from_pretrained(tmp_path / "m.pth")


def test_parameters_and_strided_tensors_are_read(weights, tmp_path):
    tensors = {n: torch.nn.Parameter(t) for n, t in as_torch(weights).items()}
    tensors["head.weight"] = tensors["head.weight"].detach().t().contiguous().t()
    torch.save(tensors, tmp_path / "m.pth")
    checkpoint = Checkpoint.open(tmp_path / "m.pth")
    for name in checkpoint.names:
        np.testing.assert_array_equal(checkpoint.read(name).numpy(), weights[name].squeeze())


def test_a_compressed_zip_is_read_instead_of_mapped(weights, tmp_path):
    stored, packed = save_pth(weights, tmp_path / "stored.pth"), tmp_path / "packed.pth"
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    checkpoint = Checkpoint.open(packed)
    np.testing.assert_array_equal(checkpoint.read("head.weight").numpy(), weights["head.weight"])


def test_tied_embeddings(weights, tmp_path):
    weights = {name: value for name, value in weights.items() if name != "head.weight"}
    folder = save_hugging_face(weights, SHAPE, tmp_path / "hf")
    with pytest.raises(CheckpointError, match="tensors are missing: head"):
        Checkpoint.open(folder)
    (folder / "config.json").write_text(json.dumps(settings(SHAPE) | {"tie_word_embeddings": True}))
    model = RWKV.from_pretrained(folder).engine.model
    assert torch.equal(model.head.weight, model.emb.weight)


def test_the_layer_norm_epsilon_comes_from_the_config(weights, tmp_path):
    folder = save_hugging_face(weights, SHAPE, tmp_path / "hf")
    (folder / "config.json").write_text(json.dumps(settings(SHAPE) | {"layer_norm_epsilon": 1e-3}))
    model = RWKV.from_pretrained(folder).engine.model
    assert model.blocks[1].ln1.eps == 1e-3
    assert model.ln_out.eps == 1e-5


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_damaged_json_is_refused(content, weights, tmp_path):
    folder = save_hugging_face(weights, SHAPE, tmp_path / "hf", shards=2)
    for name in ("config.json", "model.safetensors.index.json"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(CheckpointError, match="json"):
            Checkpoint.open(folder)
        (folder / name).write_bytes(good)


def test_a_shard_outside_the_directory_is_refused(weights, tmp_path):
    folder = save_hugging_face(weights, SHAPE, tmp_path / "hf", shards=2)
    save_safetensors(weights, tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"outside\.safetensors"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["nothing.pth", "folder", "x" * 300])
def test_a_missing_path_is_refused(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=name):
        RWKV.from_pretrained(tmp_path / name)


def test_a_user_who_does_not_exist():
    with pytest.raises(CheckpointError, match="nobody-at-all"):
        RWKV.from_pretrained("~nobody-at-all/model.pth")
