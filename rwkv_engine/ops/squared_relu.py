"""squared_relu: relu(k)^2, the activation of channel mixing."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, kernels_serve

SQUARED_RELU_SCHEMA = "squared_relu(Tensor k) -> Tensor"


def squared_relu(k: Tensor) -> Tensor:
    """relu(k)^2 of any shape, float32; NaN stays. float64 and gradients run the torch reference."""
    if not kernels_serve(k):
        return squared_relu_reference(k)
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.squared_relu(k)


def squared_relu_reference(k: Tensor) -> Tensor:
    """`squared_relu` in plain torch."""
    return torch.relu(k).square()


define(SQUARED_RELU_SCHEMA, squared_relu_reference, lambda k: torch.empty_like(k))
