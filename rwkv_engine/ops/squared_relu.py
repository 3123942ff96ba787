"""squared_relu_: relu(k)^2 in place of k, the activation of channel mixing."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, kernels_serve

SQUARED_RELU_SCHEMA = "squared_relu_(Tensor(a!) k) -> ()"


def squared_relu_(k: Tensor) -> Tensor:
    """relu(k)^2; use the result and no longer k, which it overwrites unless k is float64 or needs a gradient.

    The k of a long prompt is tens of megabytes, and new memory takes several times as long to write as memory in use.

    Args:
        k: float32 of any shape, in memory without gaps. NaN stays.

    Returns:
        k itself, or a new tensor from the torch reference.

    Raises:
        RuntimeError: the memory of k has gaps, or elements that share it.
    """
    if not kernels_serve(k):
        return squared_relu_reference(k)
    cpu_kernels.ensure_loaded()
    torch.ops.rwkv_engine.squared_relu_(k)
    return k


def squared_relu_reference(k: Tensor) -> Tensor:
    """`squared_relu_` in plain torch, in new memory."""
    return torch.relu(k).square()


def _in_place(k: Tensor) -> None:
    k.relu_().square_()


define(SQUARED_RELU_SCHEMA, _in_place, lambda k: None)
