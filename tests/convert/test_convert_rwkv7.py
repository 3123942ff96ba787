"""RWKV-7 to Hugging Face directories and back: published names and shapes, the same bits, the same logits."""

from __future__ import annotations

import json

import oracle7
import pytest
import torch
from checkpoint_files import as_torch, save_pth
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine import RWKV, Checkpoint, CheckpointError
from rwkv_engine.checkpoints.files import read_file
from rwkv_engine.convert import check_size, save_hugging_face, to_hugging_face, to_pth
from rwkv_engine.core import Rwkv7Config

SHAPE = oracle7.Shape(n_layer=3, n_head=2, head_size=64, n_ffn=200, n_vocab=50)
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
# Published names and their shapes for layer 1, with C = 128, F = 200 and the ranks 5, 3, 7, 4 of w, a, v, g.
LAYER = {
    **{f"{norm}.{kind}": (128,) for norm in ("attn_norm", "ffn_norm") for kind in ("weight", "bias")},
    **{f"attn.x_{name}": (1, 1, 128) for name in "rwkvag"},
    **{f"attn.{name}_lora.lora.2.bias": (128,) for name in "wav"},
    **{f"attn.{name}_lora.lora.0.weight": (rank, 128) for name, rank in zip("wavg", (5, 3, 7, 4), strict=True)},
    **{f"attn.{name}_lora.lora.2.weight": (128, rank) for name, rank in zip("wavg", (5, 3, 7, 4), strict=True)},
    "attn.k_k": (128,),
    "attn.k_a": (128,),
    "attn.r_k": (2, 64),
    **{f"attn.{name}_proj.weight": (128, 128) for name in "rkvo"},
    "attn.g_norm.weight": (128,),
    "attn.g_norm.bias": (128,),
    "ffn.x_k": (128,),
    "ffn.key.weight": (200, 128),
    "ffn.value.weight": (128, 200),
}


def stored(folder):
    """Every tensor of a directory by its name in the file."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.read() for name, tensor in read_file(file).tensors.items()}
    return found


def test_names_and_shapes_are_those_of_published_directories(tmp_path):
    source = save_pth(oracle7.random_weights(SHAPE), tmp_path / "goose.pth")
    done = to_hugging_face(source, tmp_path / "hf")
    shapes = {name: tuple(tensor.shape) for name, tensor in stored(tmp_path / "hf").items()}
    assert {n.removeprefix("model.layers.1."): s for n, s in shapes.items() if ".layers.1." in n} == LAYER
    assert {name for name in shapes if ".layers." not in name} == {
        *("model.embeddings.weight", "model.norm.weight", "model.norm.bias", "lm_head.weight")
    }
    first = {n.removeprefix("model.layers.0.") for n in shapes if ".layers.0." in n}
    assert first == {n for n in LAYER if "v_lora" not in n} | {"pre_norm.weight", "pre_norm.bias"}
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = {"model_type": "rwkv7", "architectures": ["RWKV7ForCausalLM"], "num_heads": 2, "head_dim": 64}
    assert expected.items() <= config.items()
    assert not config.keys() & {"rescale_every", "context_length", "auto_map"}
    assert not [name for name in done.files if name.endswith(".py")]
    assert "rwkv7_hf" in (tmp_path / "hf" / "README.md").read_text()


@settings(max_examples=8, deadline=None)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 2),
    head_size=st.sampled_from([32, 64]),
    ranks=st.tuples(*[st.integers(1, 20)] * 4),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    shard_size=st.sampled_from([2000, 10**9]),
    unused=st.booleans(),
)
def test_a_round_trip_is_bit_identical(tmp_path_factory, layers, heads, head_size, ranks, dtype, shard_size, unused):
    folder = tmp_path_factory.mktemp("m")
    weights = oracle7.random_weights(oracle7.Shape(layers, heads, head_size, 40, 21, ranks), unused=unused)
    source = save_pth(weights, folder / "m.pth", dtype)
    to_hugging_face(source, folder / "hf", shard_size=shard_size)
    to_pth(folder / "hf", folder / "back.pth")
    back = torch.load(folder / "back.pth", weights_only=True)
    expected = {n: t for n, t in as_torch(weights, dtype).items() if n not in Rwkv7Config.unused}
    assert back.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (back[name].dtype, back[name].shape) == (dtype, tensor.shape), name
        assert torch.equal(back[name].view(torch.int8), tensor.view(torch.int8)), name
    assert Checkpoint.open(folder / "hf").fingerprint() == Checkpoint.open(source).fingerprint()


@pytest.mark.slow
def test_another_program_computes_the_same_from_a_directory(tmp_path):
    peer = pytest.importorskip("rwkv7_hf", reason="the rwkv7-hf package is not installed")
    source = save_pth(oracle7.random_weights(SHAPE), tmp_path / "goose.pth")
    to_hugging_face(source, tmp_path / "hf")
    theirs, info = peer.RWKV7ForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        expected = theirs(torch.tensor([IDS])).logits[0]
    logits, _ = RWKV.from_pretrained(tmp_path / "hf").forward(IDS, full_output=True)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    theirs.save_pretrained(tmp_path / "saved")
    assert Checkpoint.open(tmp_path / "saved").fingerprint() == Checkpoint.open(source).fingerprint()


def test_code_in_a_directory_is_never_executed(tmp_path):
    source = save_pth(oracle7.random_weights(SHAPE), tmp_path / "goose.pth")
    to_hugging_face(source, tmp_path / "hf")
    mark = tmp_path / "executed"
    (tmp_path / "hf" / "modeling_rwkv7.py").write_text(f"open({str(mark)!r}, 'w')\n")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_rwkv7.RWKV7ForCausalLM"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    RWKV.from_pretrained(tmp_path / "hf").forward(IDS)
    to_pth(tmp_path / "hf", tmp_path / "back.pth")
    to_hugging_face(tmp_path / "hf", tmp_path / "again")
    assert not mark.exists()
    assert not (tmp_path / "again" / "modeling_rwkv7.py").exists()


def test_models_that_other_programs_run_differently_are_named(tmp_path, capfd):
    source = save_pth(oracle7.random_weights(oracle7.Shape(1, 2, 32, 40, 21)), tmp_path / "m.pth")
    to_hugging_face(source, tmp_path / "hf")
    assert "its heads have 32 channels" in capfd.readouterr().err
    config = Checkpoint.open(source).config
    with pytest.raises(ValueError, match="announced"):
        save_hugging_face(tmp_path / "hf", config, [], torch.float32)


def test_sizes_are_told_apart_by_the_version():
    small = Rwkv7Config(12, 768, 12, 64, 3072, 65536, 64, 64, 32, 128)
    check_size("m", small, "0.1B")
    with pytest.raises(CheckpointError, match=r"is 0\.1B; expected an RWKV-4 of 12 layers of 768 for --size 169M"):
        check_size("m", small, "169M")
