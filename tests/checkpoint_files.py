"""Writes one set of weights in every format a checkpoint comes in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from oracle import Shape
from safetensors.torch import save_file

from rwkv_engine.convert.pack import pack
from rwkv_engine.core.rwkv4 import Rwkv4Config

Weights = dict[str, np.ndarray]


def as_torch(weights: Weights, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value).to(dtype) for name, value in weights.items()}


def save_pth(weights: Weights, path: Path, dtype: torch.dtype = torch.float32, legacy: bool = False) -> Path:
    torch.save(as_torch(weights, dtype), path, _use_new_zipfile_serialization=not legacy)
    return path


def save_safetensors(weights: Weights, path: Path) -> Path:
    save_file(as_torch(weights), path)
    return path


def save_packed(weights: Weights, path: Path, strategy: str | None = None) -> Path:
    pack(save_pth(weights, path.with_suffix(".pth")), path, strategy)
    path.with_suffix(".pth").unlink()
    return path


def settings(shape: Shape) -> dict:
    return {
        "model_type": "rwkv",
        "vocab_size": shape.n_vocab,
        "hidden_size": shape.n_embd,
        "attention_hidden_size": shape.n_att,
        "intermediate_size": shape.n_ffn,
        "num_hidden_layers": shape.n_layer,
        "layer_norm_epsilon": 1e-5,
        "rescale_every": 0,
    }


def save_hugging_face(
    weights: Weights, shape: Shape, folder: Path, *, kind: str = "safetensors", shards: int = 1, prefix: bool = True
) -> Path:
    """A directory: `kind` is "safetensors" or "bin"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings(shape)))
    tensors = {Rwkv4Config.to_hugging_face(name): tensor for name, tensor in as_torch(weights).items()}
    if not prefix:
        tensors = {name.removeprefix("rwkv."): tensor for name, tensor in tensors.items()}
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    save = save_file if kind == "safetensors" else torch.save
    if shards == 1:
        save(tensors, folder / f"{stem}.{ending}")
        return folder
    weight_map = {}
    for i in range(shards):
        part = {name: tensors[name] for j, name in enumerate(tensors) if j % shards == i}
        file = f"{stem}-{i + 1:05}-of-{shards:05}.{ending}"
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
