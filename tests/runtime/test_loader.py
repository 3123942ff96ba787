from __future__ import annotations

import oracle
import pytest
import torch
from checkpoints import as_torch, save_hugging_face, save_pth, save_safetensors
from hypothesis import given
from hypothesis import strategies as st
from oracle import Shape

from rwkv_engine import RWKV, CheckpointError
from rwkv_engine.core import ModelConfig

SHAPE = Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=33)
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def weights():
    return oracle.random_weights(SHAPE)


@pytest.mark.parametrize("wrong", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("name", ModelConfig(2, 16, 24, 40, 33).tensor_shapes())
def test_one_number_that_is_none_is_found_in_any_tensor(name, wrong, weights, tmp_path):
    weights[name].reshape(-1)[-1] = wrong
    path = save_pth(weights, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=f"{name}: 1 of {weights[name].size} numbers are NaN or infinite"):
        RWKV.from_pretrained(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_they_are_found_in_every_type_and_counted(dtype, weights, tmp_path):
    weights["head.weight"][3:5] = NAN
    weights["head.weight"][6, 6] = INFINITY
    with pytest.raises(CheckpointError, match=r"head.weight: 33 of 528 numbers are NaN or infinite: .*damaged"):
        RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth", dtype))


def test_they_are_found_in_every_format(weights, tmp_path):
    weights["emb.weight"][0, 0] = NAN
    for path in (
        save_safetensors(weights, tmp_path / "m.safetensors"),
        save_pth(weights, tmp_path / "legacy.pth", legacy=True),
        save_hugging_face(weights, SHAPE, tmp_path / "bin", kind="bin", shards=2),
    ):
        with pytest.raises(CheckpointError, match=r"emb\.weight: 1 of 528"):
            RWKV.from_pretrained(path)


@given(st.integers(1, 200_000), st.data(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_extremes_miss_no_nan(size, data, dtype):
    """What the check relies on: torch's vector code and its rests, on one thread or more, pass a NaN on."""
    tensor = torch.ones(size, dtype=dtype)
    tensor[data.draw(st.integers(0, size - 1))] = NAN
    assert all(extreme.isnan() for extreme in tensor.aminmax())


def test_a_number_too_large_for_where_it_goes_is_no_damage(weights, tmp_path):
    tensors = as_torch(weights, torch.float64)
    tensors["ln_out.bias"][3] = -1e300
    torch.save(tensors, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"ln_out.bias: holds numbers up to 1e\+300, too large for torch.float32"):
        RWKV.from_pretrained(tmp_path / "m.pth")


def test_the_largest_numbers_there_are_pass(weights, tmp_path):
    largest = torch.finfo(torch.float32).max
    weights["ln_out.bias"][:2] = largest, -largest
    assert RWKV.from_pretrained(save_pth(weights, tmp_path / "m.pth")).engine.model.ln_out.bias[0] == largest
