"""gate_residual: x + sigmoid(r) y, adds a product gated by the receptance to the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, kernels_serve

GATE_RESIDUAL_SCHEMA = "gate_residual(Tensor? x, Tensor r, Tensor y) -> Tensor"


def gate_residual(x: Tensor | None, r: Tensor, y: Tensor) -> Tensor:
    """x + sigmoid(r) y, or without x sigmoid(r) y. The torch reference runs for float64 and if a gradient is needed.

    Args:
        x: the residual stream, float32 of the shape of r; None to add nothing.
        r, y: float32, both of the same shape.

    Returns:
        Float32 of the shape of r.

    Raises:
        RuntimeError: shapes or dtypes do not match.
    """
    if not kernels_serve(r, y, x):
        return gate_residual_reference(x, r, y)
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.gate_residual(x, r, y)


def gate_residual_reference(x: Tensor | None, r: Tensor, y: Tensor) -> Tensor:
    """`gate_residual` in plain torch."""
    gated = torch.sigmoid(r) * y
    return gated if x is None else x + gated


define(GATE_RESIDUAL_SCHEMA, gate_residual_reference, lambda x, r, y: torch.empty_like(r))
