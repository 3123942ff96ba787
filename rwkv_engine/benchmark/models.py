"""The models that engines run: a given one, or one of random weights in a named shape.

What decoding a token costs depends on one thing about the weights: the share of zeros in channel mixing's squared ReLU,
because rows of the value matrix whose input is zero are not read. Random weights are therefore made to have the share
that is asked for. One channel of the key product's input is constant: its weight in the LayerNorm before it is 0, its
bias 1. That channel's column of the key matrix is filled with one number m. The other channels have unit variance and
weights from N(0, 1/C), so k ~ N(m, 1), and m determines P(k <= 0).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import ModelConfig, Rwkv4Config, Rwkv7Config, Strategy
from rwkv_engine.core.config import Role
from rwkv_engine.core.dtypes import word_of
from rwkv_engine.errors import CheckpointError, RequestError

# With this m P(k <= 0) is 6e-16: there are no zeros. With -m there is nothing but zeros.
FAR = 8.0


def _plain(n_layer: int, n_embd: int, n_vocab: int) -> Rwkv4Config:
    return Rwkv4Config(n_layer, n_embd, n_embd, 4 * n_embd, n_vocab)


def _goose(n_layer: int, n_embd: int, n_vocab: int, ranks: tuple[int, int, int, int]) -> Rwkv7Config:
    return Rwkv7Config(n_layer, n_embd, n_embd // 64, 64, 4 * n_embd, n_vocab, *ranks)


SHAPES: dict[str, ModelConfig] = {
    "169m": _plain(12, 768, 50277),
    "430m": _plain(24, 1024, 50277),
    "1b5": _plain(24, 2048, 50277),
    "3b": _plain(32, 2560, 50277),
    "tales": Rwkv4Config(5, 224, 224, 768, 2048),
    "rwkv7-0.1b": _goose(12, 768, 65536, (64, 64, 32, 128)),
    "rwkv7-0.4b": _goose(24, 1024, 65536, (64, 64, 32, 128)),
    "rwkv7-1.5b": _goose(24, 2048, 65536, (96, 96, 64, 256)),
    "rwkv7-2.9b": _goose(32, 2560, 65536, (96, 96, 64, 320)),
}


def parse_shape(text: str) -> ModelConfig:
    """A name of `SHAPES`, or `L,C,V`: layers, width and vocabulary of an RWKV-4; channel mixing is four times as wide.

    Raises:
        RequestError: it is neither.
    """
    if text in SHAPES:
        return SHAPES[text]
    try:
        n_layer, n_embd, n_vocab = (int(part) for part in text.split(","))
    except ValueError:
        n_layer = n_embd = n_vocab = 0
    if min(n_layer, n_embd, n_vocab) < 1:
        raise RequestError(
            f"shape: got {text!r}, expected one of {', '.join(SHAPES)}, or L,C,V (layers, width, vocabulary), such as"
            " 12,768,50277"
        )
    return _plain(n_layer, n_embd, n_vocab)


@dataclass(frozen=True)
class BenchModel:
    """A model on disk.

    Attributes:
        path: the checkpoint.
        config: its sizes.
        synthetic: whether its weights are random.
        facts: name, precision and sizes, for reports.
    """

    path: Path
    config: ModelConfig
    synthetic: bool
    facts: dict[str, Any]


def given_model(path: Path, name: str) -> BenchModel:
    """The model of a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    checkpoint = Checkpoint.open(path)
    stored = str(checkpoint.packing) if checkpoint.packing else word_of(checkpoint.read("head.weight").dtype)
    return BenchModel(path, checkpoint.config, False, _facts(name, stored, checkpoint.config))


def synthetic_model(shape: str, zeros: float, strategies: Sequence[Strategy], folder: Path) -> BenchModel:
    """A model of random weights, written to `folder` in the strategies' precision, or in float32 if they have several.

    Raises:
        RequestError: there is no such shape.
        StrategyError: a strategy does not fit it.
        CheckpointError: there is no room for it.
    """
    config = parse_shape(shape)
    dtypes = {placement.dtype for strategy in strategies for placement in strategy.place(config)}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    path = folder / "model.pth"
    write_synthetic(path, config, dtype, zeros)
    return BenchModel(
        path, config, True, _facts(f"random weights, shape {shape}", word_of(dtype), config) | {"ffn_zeros": zeros}
    )


def _facts(name: str, stored: str, config: ModelConfig) -> dict[str, Any]:
    return {
        "name": name,
        "stored_as": stored,
        "config": {"version": config.version, **config.sizes(), "layer_norm_eps": config.layer_norm_eps},
        "parameters": config.n_params,
    }


def write_synthetic(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    zeros: float,
    device: str = "cpu",
    save: Callable[[dict[str, Tensor], Path], None] = torch.save,
) -> None:
    """Writes random weights as a `.pth`, which every program reads; meanwhile all of it is in memory.

    Args:
        path: the file to write.
        config, dtype, zeros, device: see `synthetic_tensors`.
        save: writes the tensors to the path.

    Raises:
        CheckpointError: there is no room for it on the disk, or it cannot be written.
    """
    needed, free = config.n_params * dtype.itemsize, shutil.disk_usage(path.parent).free
    if needed > free:
        raise CheckpointError(
            f"{path.parent}: {free / 1e9:.1f} GB free, the synthetic model needs {needed / 1e9:.1f} GB; set TMPDIR to"
            " a larger disk, or give a smaller --shape"
        )
    try:
        save(synthetic_tensors(config, dtype, zeros, device), path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())  # or the system would write it back during the measurements
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the synthetic model cannot be written: {error}") from error


def synthetic_tensors(config: ModelConfig, dtype: torch.dtype, zeros: float, device: str = "cpu") -> dict[str, Tensor]:
    """A checkpoint's tensors in main memory: matrices in `dtype`, vectors in float32. Deterministic.

    Args:
        config: the sizes; the width must be at least 2, because one channel is constant.
        dtype: of the matrices.
        zeros: the share of exact zeros in the squared ReLU, from 0 to 1.
        device: where the numbers are sampled, which is faster on a GPU; each kind of device samples other numbers.
    """
    random = torch.Generator(device).manual_seed(0)
    m = offset(zeros)
    # Keeps what channel mixing adds to the residual near 1 for every m: the root mean square of k^2 is sqrt(E[k^4]).
    scale = math.sqrt(m**4 + 6 * m**2 + 3)
    tensors = {}
    for name, spec in config.tensors().items():
        shape = spec.shape
        if spec.role is not Role.VECTOR:
            matrix = torch.randn(shape, generator=random, dtype=torch.float32, device=device)
            matrix /= math.sqrt(shape[0 if spec.role is Role.LOW_RANK else 1])  # the inputs of x W, of W x
            if name.endswith("ffn.key.weight"):
                matrix[:, 0] = m
            elif name.endswith("ffn.value.weight"):
                matrix /= scale
            tensors[name] = matrix.to("cpu", dtype)
        else:
            tensors[name] = _vector(name, shape, random, device).cpu()
    return tensors


def offset(zeros: float) -> float:
    """The number m that gives this share of zeros."""
    if not 0 < zeros < 1:
        return FAR if zeros == 0 else -FAR
    return -NormalDist().inv_cdf(zeros)


def _vector(name: str, shape: tuple[int, ...], random: torch.Generator, device: str) -> Tensor:
    if name.endswith("ffn.x_k"):  # in RWKV-7 the weight of the last token
        return torch.zeros(1, 1, *shape, dtype=torch.float32)
    if name.endswith(".k_k"):  # a removed key of zeros would not be a key
        return torch.ones(1, 1, *shape, dtype=torch.float32)
    if name.endswith("ffn.time_mix_k"):
        return torch.ones(1, 1, *shape, dtype=torch.float32)  # the current token only, or the variance would not be 1
    if "time_mix" in name or ".x_" in name:
        return torch.rand(1, 1, *shape, generator=random, dtype=torch.float32, device=device)
    if name.endswith("time_decay"):
        return torch.rand(shape, generator=random, dtype=torch.float32, device=device) * 6 - 5
    vector = torch.full(shape, float(name.endswith("weight")), dtype=torch.float32)
    if ".ln2." in name:
        vector[0] = 1 - vector[0]
    return vector
