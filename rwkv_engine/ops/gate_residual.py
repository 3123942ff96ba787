"""gate_residual: x + sigmoid(r) y, how the receptance lets a product into the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, kernels_serve

GATE_RESIDUAL_SCHEMA = "gate_residual(Tensor? x, Tensor r, Tensor y) -> Tensor"


def gate_residual(x: Tensor | None, r: Tensor, y: Tensor) -> Tensor:
    """x + sigmoid(r) y, or the gate alone. float64 and gradients run the torch reference.

    Args:
        x: of the shape of r, float32; None for nothing to add to.
        r, y: of one shape, float32.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
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
