"""linear_many: y = x W^T for many rows x, with W as the decode steps read it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine import _extension
from rwkv_engine.ops._library import define
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.tiles import untile

LINEAR_MANY_SCHEMA = "linear_many(Tensor x, Tensor weight, int outputs, Tensor? scales=None) -> Tensor"


def linear_many(x: Tensor, weight: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """Multiplies rows as a matrix; on the CPU a row's bits do not depend on how many there are.

    Sums are float32. Activations become what the weights are where that pays: beside bfloat16 weights on processors
    that multiply pairs of them, and in the torch reference, see `dense_product`, which serves every device without a
    kernel of its own. Beside int8 weights they become whole numbers, as for `ops.linear`. Else they stay float32.

    Args:
        x: (M, K) float32.
        weight: W (N, K) as `ops.tiles.tile` returns it, or W^T row after row (K, N); float32, bfloat16, float16
            or int8.
        outputs: N.
        scales: of int8 weights, (N + K,) float32, see `ops.int8`.

    Returns:
        (M, N) float32.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
    """
    _extension.ensure_loaded()
    return torch.ops.rwkv_engine.linear_many(x, weight, outputs, scales)


def linear_many_reference(x: Tensor, weight: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """`linear_many` in plain torch."""
    matrix = weight.t() if weight.ndim == 2 else untile(weight, outputs, x.shape[1])
    return dense_product(x, in_floats(matrix, scales))


def dense_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) float32 times W^T, W (N, K) in any floating dtype -> (..., N) in the dtype of x; has a gradient.

    Beside 16-bit weights activations are rounded to their type: torch's own products want both alike. Each row of a
    float16 product is brought below 1 by a power of two first, which costs no digit: relu(k)^2 may pass 65504.
    """
    if weight.dtype == x.dtype:
        return F.linear(x, weight)
    if weight.dtype == torch.bfloat16:
        return _rounded_product(x, weight)
    _, exponent = torch.frexp(x.abs().amax(dim=-1, keepdim=True))
    return torch.ldexp(_rounded_product(torch.ldexp(x, -exponent), weight), exponent)


def _rounded_product(x: Tensor, weight: Tensor) -> Tensor:
    if x.is_cuda and not torch.is_grad_enabled():  # torch has 16-bit products with float32 results only there
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        return torch.mm(rows, weight.t(), out_dtype=x.dtype).view(*x.shape[:-1], len(weight))
    return F.linear(x.to(weight.dtype), weight).to(x.dtype)


def _fake(x, weight, outputs, scales=None):  # type: ignore[no-untyped-def]
    return x.new_empty(len(x), outputs)


define(LINEAR_MANY_SCHEMA, linear_many_reference, _fake)
