"""residual_rows: adds a product of `activate_rows` to the residual stream; for prompts on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define

RESIDUAL_ROWS_SCHEMA = "residual_rows(Tensor x, Tensor? gate, Tensor y, Tensor powers) -> Tensor"


def residual_rows(x: Tensor, gate: Tensor | None, y: Tensor, powers: Tensor) -> Tensor:
    """x + sigmoid(gate) powers y, or without a gate x + powers y: `gate_residual` of rows that were scaled.

    Args:
        x, y: (M, K) float32.
        gate: (M, K) float32, or None.
        powers: (M, 1) float32.

    Returns:
        (M, K) float32.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.residual_rows(x, gate, y, powers)


def residual_rows_reference(x: Tensor, gate: Tensor | None, y: Tensor, powers: Tensor) -> Tensor:
    """`residual_rows` in plain torch."""
    scaled = y * powers
    return x + (scaled if gate is None else torch.sigmoid(gate) * scaled)


define(RESIDUAL_ROWS_SCHEMA, residual_rows_reference, lambda x, *_: torch.empty_like(x))
