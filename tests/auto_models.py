"""What tests of the transformers-shaped model share: small models, beside transformers' own of the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_hugging_face
from oracle import Shape
from states import FIELDS
from torch import Tensor

from rwkv_engine.auto import AutoModelForCausalLM, RwkvForCausalLM
from rwkv_engine.core.state import State

SHAPE = Shape(n_layer=3, n_embd=32, n_att=32, n_ffn=72, n_vocab=50)


def folder_of(path: Path, shape: Shape = SHAPE, seed: int = 0) -> Path:
    """A Hugging Face directory with random weights."""
    return save_hugging_face(oracle.random_weights(shape, seed), shape, path / "hf")


def ours(folder: Path, **options) -> RwkvForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def theirs(folder: Path, **options):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.RwkvForCausalLM.from_pretrained(folder, rescale_every=0, **options).eval()


def random_ids(batch: int, n: int, shape: Shape = SHAPE, seed: int = 1) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(0, shape.n_vocab, (batch, n)))


def difference(a: Tensor, b: Tensor) -> float:
    """The largest, relative to the largest number."""
    a, b = a.detach().float().cpu(), b.detach().float().cpu()
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def same_state(a: State, b: State) -> bool:
    """Bit for bit."""
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in (*FIELDS, "position"))
