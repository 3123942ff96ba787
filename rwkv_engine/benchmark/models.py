"""What the engines run: a model of random weights, or one that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rwkv_engine.benchmark.shapes import parse_shape
from rwkv_engine.benchmark.synthetic import write_synthetic
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import ModelConfig, Strategy


@dataclass(frozen=True)
class BenchModel:
    """A model on disk.

    Attributes:
        path: of the checkpoint.
        config: its sizes.
        synthetic: whether its weights are random.
        facts: the same for reports.
    """

    path: Path
    config: ModelConfig
    synthetic: bool
    facts: dict[str, Any]


def given_model(path: Path, name: str) -> BenchModel:
    """One that is there.

    Raises:
        CheckpointError: it cannot be read.
    """
    checkpoint = Checkpoint.open(path)
    stored = str(checkpoint.packing) if checkpoint.packing else _word(checkpoint.read("head.weight").dtype)
    return BenchModel(path, checkpoint.config, False, _facts(name, stored, checkpoint.config))


def synthetic_model(shape: str, zeros: float, strategies: Sequence[str], folder: Path) -> BenchModel:
    """One of random weights, written to `folder` in the precision of all strategies, in float32 if they have several.

    Raises:
        RequestError: there is no such shape.
        StrategyError: a strategy does not fit it.
        CheckpointError: there is no room.
    """
    config = parse_shape(shape)
    dtypes = {placement.dtype for strategy in strategies for placement in Strategy.parse(strategy).place(config)}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    path = folder / "model.pth"
    write_synthetic(path, config, dtype, zeros)
    return BenchModel(
        path, config, True, _facts(f"random weights, shape {shape}", _word(dtype), config) | {"ffn_zeros": zeros}
    )


def _facts(name: str, stored: str, config: ModelConfig) -> dict[str, Any]:
    return {
        "name": name,
        "stored_as": stored,
        "config": {"version": config.version, **config.sizes(), "layer_norm_eps": config.layer_norm_eps},
        "parameters": config.n_params,
    }


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
