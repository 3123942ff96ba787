"""Files as trainers leave them are read; files of other kinds are named for what they are, with the way out."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_files import as_torch, save_hugging_face, save_pth, save_safetensors
from safetensors.torch import save_file

from rwkv_engine import Checkpoint, CheckpointError
from rwkv_engine.core.rwkv4 import Rwkv4Config


def holds(path, weights):
    checkpoint = Checkpoint.open(path)
    for name in checkpoint.names:
        np.testing.assert_array_equal(checkpoint.read(name).numpy(), weights[name].squeeze())


PREFIXES = [
    "_forward_module.",
    "module.",
    "_orig_mod.",
    "model.",
    "_forward_module._orig_mod.",
    "module.module.model.",
    "_fsdp_wrapped_module.",
]


@pytest.mark.parametrize("rename", [lambda name: name, Rwkv4Config.to_hugging_face], ids=["original", "Hugging Face"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_trainers_prefixes_are_removed(prefix, rename, weights, tmp_path):
    tensors = {prefix + rename(name): tensor for name, tensor in as_torch(weights).items()}
    torch.save(tensors, tmp_path / "m.pth")
    holds(tmp_path / "m.pth", weights)
    save_file(tensors, tmp_path / "m.safetensors")
    holds(tmp_path / "m.safetensors", weights)


def test_wrappers_inside_a_name_are_removed(weights, tmp_path):
    wrapped = {
        name.replace("att.", "_orig_mod.att._checkpoint_wrapped_module."): tensor
        for name, tensor in as_torch(weights).items()
    }
    torch.save(wrapped, tmp_path / "m.pth")
    holds(tmp_path / "m.pth", weights)


def test_two_copies_of_a_model_under_different_prefixes_are_refused(weights, tmp_path):
    tensors = as_torch(weights)
    torch.save(tensors | {f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"emb\.weight and module\.emb\.weight differ only by a prefix"):
        Checkpoint.open(tmp_path / "m.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "nest",
    [
        lambda t: {"state_dict": t, "epoch": 3, "optimizer_states": [{"state": {}}]},
        lambda t: {"model": t, "optimizer": {"state": {0: torch.ones(2)}, "param_groups": [{"lr": 1e-4}]}},
        lambda t: {"module": {f"module.{name}": tensor for name, tensor in t.items()}, "lr_scheduler": None},
        lambda t: {"model_state_dict": t, "loss": 2.5},
        lambda t: {"model": {"state_dict": t}},
    ],
    ids=["state_dict", "model", "module", "model_state_dict", "twice"],
)
def test_a_state_dict_inside_a_trainers_dictionary_is_read(nest, legacy, weights, tmp_path):
    torch.save(nest(as_torch(weights)), tmp_path / "m.ckpt", _use_new_zipfile_serialization=not legacy)
    holds(tmp_path / "m.ckpt", weights)


def test_a_file_under_the_name_of_the_other_format_is_read_or_named(weights, tmp_path):
    holds(save_safetensors(weights, tmp_path / "safe.pth"), weights)
    with pytest.raises(CheckpointError, match=r"is a \.pth file by its content; rename it to raw\.pth"):
        Checkpoint.open(save_pth(weights, tmp_path / "raw.safetensors"))


def lora(weights):
    return {
        "blocks.0.att.key.lora_A": np.ones((2, 16), np.float32),
        "blocks.0.att.key.lora_B": np.ones((24, 2), np.float32),
    }


def test_a_lora_adapter_is_named(weights, tmp_path):
    path = save_pth(lora(weights), tmp_path / "lora.pth")
    with pytest.raises(CheckpointError, match=r"is a LoRA adapter, without the model.*merge_and_unload"):
        Checkpoint.open(path)
    path = save_pth(weights | lora(weights), tmp_path / "both.pth")
    with pytest.raises(CheckpointError, match=r"LoRA in it is not merged.*lora_A.*merge_and_unload"):
        Checkpoint.open(path)
    peft = {"base_model.model.rwkv.blocks.0.attention.key.lora_A.weight": np.ones((2, 16), np.float32)}
    (tmp_path / "adapter").mkdir()
    save_safetensors(peft, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is a LoRA adapter"):
        Checkpoint.open(tmp_path / "adapter")


def zip_of(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return content.getvalue()


def tar_of_one_file():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return content.getvalue()


FOREIGN = {
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        r"is a Git LFS pointer.*`git lfs pull`",
    ),
    "HTML": (b"\n<!DOCTYPE html>\n<html>404</html>", "is a web page.*download it again"),
    "html": (b"<html><body>", "is a web page"),
    "XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
    "JSON": (b'{"error":"Repository not found"}', "is JSON text"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(100), "is a GGUF file.*give the .pth or .safetensors"),
    "rwkv.cpp": ((0x67676D66).to_bytes(4, "little") + bytes(100), "ggml file, the format of rwkv.cpp; give the .pth"),
    "ggml": ((0x67676D6C).to_bytes(4, "little") + bytes(100), "ggml file"),
    "gzip": (gzip.compress(b"content"), "compressed with gzip; decompress it"),
    "zip with a model": (zip_of("a/readme.txt", "a/model.pth"), "zip archive that holds 'a/model.pth'; unpack it"),
    "zip without": (zip_of("a.txt"), "zip archive that holds no checkpoint"),
    "tar": (tar_of_one_file(), "is a tar archive; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "7-Zip"),
    "numpy": (b"\x93NUMPY\x01\0" + bytes(100), "a NumPy array"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_named(kind, suffix, tmp_path):
    content, message = FOREIGN[kind]
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(path)
    assert "damaged" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_shard_that_is_a_git_lfs_pointer_is_named(weights, shape, tmp_path):
    folder = save_hugging_face(weights, shape, tmp_path / "hf", shards=2)
    (folder / "model-00002-of-00002.safetensors").write_bytes(FOREIGN["Git LFS"][0])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: is a Git LFS pointer"):
        Checkpoint.open(folder)


def test_a_gzipped_checkpoint_is_named(source):
    with open(source, "rb") as plain, gzip.open(source.with_suffix(".pth.gz"), "wb") as compressed:
        shutil.copyfileobj(plain, compressed)
    with pytest.raises(CheckpointError, match="compressed with gzip"):
        Checkpoint.open(source.with_suffix(".pth.gz"))


@pytest.mark.parametrize("form", ["pth", "legacy", "safetensors", "safetensors header"])
def test_a_file_that_ends_early_is_called_cut_off(form, weights, tmp_path):
    path = tmp_path / f"m.{form.split()[0]}"
    if form in ("pth", "legacy"):
        save_pth(weights, path, legacy=form == "legacy")
    else:
        save_safetensors(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: 100 if form.endswith("header") else -1000])
    with pytest.raises(CheckpointError, match="is cut off: its last part is missing; download or copy it again"):
        Checkpoint.open(path)


def test_a_torchscript_program_is_named_and_not_run(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "m.pth"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        Checkpoint.open(tmp_path / "m.pth")


def test_a_deepspeed_directory_is_named(tmp_path):
    (tmp_path / "zero_to_fp32.py").touch()
    with pytest.raises(CheckpointError, match=r"DeepSpeed.*zero_to_fp32\.py"):
        Checkpoint.open(tmp_path)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        Checkpoint.open(tmp_path / "m.pth")
