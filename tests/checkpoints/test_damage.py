"""Files that are incomplete, or contradict each other."""

from __future__ import annotations

import json
import random
import shutil

import oracle
import pytest
from checkpoint_files import save_hugging_face, save_packed, save_pth, save_safetensors, settings
from oracle import Shape

from rwkv_engine import RWKV, Checkpoint, CheckpointError

SHAPE = Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)
FOLDERS = [(kind, shards) for kind in ("safetensors", "bin") for shards in (1, 3)]


@pytest.fixture(scope="module")
def weights():
    return oracle.random_weights(SHAPE)


def write(form, weights, folder):
    """A checkpoint in that form: what to open, and the files it consists of."""
    match form:
        case "safetensors":
            path = save_safetensors(weights, folder / "model.safetensors")
        case "packed":
            path = save_packed(weights, folder / "model.safetensors")
        case "pth" | "legacy pth":
            path = save_pth(weights, folder / "model.pth", legacy=form == "legacy pth")
        case kind, shards:
            path = save_hugging_face(weights, SHAPE, folder, kind=kind, shards=shards)
            return path, sorted(path.iterdir())
    return path, [path]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pth", "legacy pth", "safetensors", "packed", *FOLDERS], ids=str)
def test_a_file_cut_anywhere_is_refused(form, weights, tmp_path):
    """At 200 bytes, at both ends, and at 30 places more: 240 over the eight forms, in whichever file they fall."""
    path, files = write(form, weights, tmp_path)
    Checkpoint.open(path)
    rng = random.Random(str(form))
    for file in files:
        whole = file.read_bytes()
        lengths = {0, 1, 8, min(200, len(whole) - 1), len(whole) - 1}
        for length in [*lengths, *(rng.randrange(len(whole)) for _ in range(30 // len(files)))]:
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=file.name):
                RWKV.from_pretrained(path)
        file.write_bytes(whole)


@pytest.mark.parametrize("form", FOLDERS, ids=str)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gpt2"),
        ("vocab_size", 34),
        ("hidden_size", 8),
        ("num_hidden_layers", 3),
        ("attention_hidden_size", 16),
        ("intermediate_size", 64),
        ("layer_norm_epsilon", "small"),
        ("layer_norm_epsilon", 0.0),
        ("layer_norm_epsilon", 1e6),
    ],
)
def test_a_config_that_disagrees_is_refused(key, value, form, weights, tmp_path):
    folder, _ = write(form, weights, tmp_path)
    (folder / "config.json").write_text(json.dumps(settings(SHAPE) | {key: value}))
    with pytest.raises(CheckpointError, match=key):
        Checkpoint.open(folder)


def first_two_shards(folder):
    return sorted(folder.glob("*-of-*"))[:2]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_one_tensor_in_two_shards_is_refused(kind, weights, tmp_path):
    folder, _ = write((kind, 3), weights, tmp_path)
    shutil.copy(*first_two_shards(folder))
    with pytest.raises(CheckpointError, match="two files contain"):
        Checkpoint.open(folder)


def in_another_shard(weight_map, name, folder):
    weight_map[name] = next(shard.name for shard in first_two_shards(folder) if shard.name != weight_map[name])


def not_in_the_index(weight_map, name, folder):
    del weight_map[name]


def not_in_the_shards(weight_map, name, folder):
    weight_map["extra"] = weight_map[name]


def in_a_shard_that_is_not_there(weight_map, name, folder):
    weight_map[name] = "model-00009-of-00009"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_another_shard, "00001-of-00003.* and the index disagree about rwkv.ln_out.weight"),
        (not_in_the_index, "and the index disagree about rwkv.ln_out.weight"),
        (not_in_the_shards, "and the index disagree about extra"),
        (in_a_shard_that_is_not_there, "'model-00009-of-00009' is not in the directory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_index_that_disagrees_with_its_shards_is_refused(change, message, kind, weights, tmp_path):
    folder, _ = write((kind, 3), weights, tmp_path)
    [index] = folder.glob("*.index.json")
    content = json.loads(index.read_text())
    change(content["weight_map"], "rwkv.ln_out.weight", folder)
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)
