"""activate_rows: the activations before a product in 16 bits, rounded row by row; for prompts on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define
from rwkv_engine.ops.scale_rows import powers_of_rows

ACTIVATE_ROWS_SCHEMA = "activate_rows(Tensor x, Tensor? gate, ScalarType dtype) -> (Tensor, Tensor)"


def activate_rows(x: Tensor, gate: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """sigmoid(gate) x, or without a gate relu(x)^2, in 16 bits; each row scaled as `scale_rows` does.

    This is `gate_residual` or `squared_relu_` with `scale_rows` behind it, in one kernel. bfloat16 needs no powers, but
    loses nothing by them.

    Args:
        x: (M, K) float32.
        gate: (M, K) float32, or None.
        dtype: bfloat16 or float16.

    Returns:
        The activations divided by the powers of their rows, (M, K) of the dtype, and the powers (M, 1) float32.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.activate_rows(x, gate, dtype)


def activate_rows_reference(x: Tensor, gate: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`activate_rows` in plain torch."""
    activated = torch.relu(x).square() if gate is None else torch.sigmoid(gate) * x
    down, powers = powers_of_rows(activated)
    return (activated * down).to(dtype), powers


def _fake(x, gate, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(len(x), 1)


define(ACTIVATE_ROWS_SCHEMA, activate_rows_reference, _fake)
