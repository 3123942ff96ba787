"""linear_many: y = x W^T for many rows x, with W as the decode steps read it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.tiles import untile

LINEAR_MANY_SCHEMA = "linear_many(Tensor x, Tensor weight, int outputs, Tensor? scales=None) -> Tensor"


def linear_many(x: Tensor, weight: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """Multiplies rows as a matrix; on the CPU a row's bits do not depend on how many there are.

    Sums are float32. Activations become what the weights are where that pays: beside bfloat16 weights on processors
    that multiply pairs of them, and in the torch reference, see `dense_product`, which serves every device without a
    kernel of its own. Beside int8 weights they become whole numbers, as for `ops.linear`, and on GPUs float16, see
    `int8_product`. Else they stay float32.

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
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.linear_many(x, weight, outputs, scales)


def linear_many_reference(x: Tensor, weight: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """`linear_many` in plain torch."""
    matrix = weight.t() if weight.ndim == 2 else untile(weight, outputs, x.shape[1])
    if x.is_cuda and scales is not None:
        return int8_product(x, matrix, scales)
    return dense_product(x, in_floats(matrix, scales))


def dense_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) float32 times W^T, W (N, K) in any floating dtype -> (..., N) in the dtype of x; has a gradient.

    Beside 16-bit weights activations are rounded to their type: torch's own products want both alike. Each row of a
    float16 product is brought below 1 by a power of two first: relu(k)^2 may pass 65504.
    """
    if weight.dtype == x.dtype:
        return F.linear(x, weight).to(x.dtype)  # autocast multiplies in, and returns, a type of its own
    if weight.dtype == torch.bfloat16:
        return _rounded_product(x, weight)
    x, exponent = _below_one(x)
    return _times_power(_rounded_product(x, weight), exponent)


def int8_product(x: Tensor, q: Tensor, scales: Tensor) -> Tensor:
    """x (M, K) float32 times W^T -> (M, N) float32, with W as in `ops.int8`, as GPUs multiply it: in float16.

    It holds q exactly, at half the memory of a float32 copy of W. An activation, times its column's scale and brought
    below 1 by a power of two for each row, is off by at most 2^-11 of itself or 2^-25. Sums are float32.
    """
    rows, columns = scales.split(list(q.shape))
    x, exponent = _below_one(x * columns)
    halves, weight = x.half(), q.half()
    # A sum may pass 65504. Where torch has no float32 results of float16 products, the same numbers in float32 do.
    sums = (
        torch.mm(halves, weight.t(), out_dtype=torch.float32) if x.is_cuda else F.linear(halves.float(), weight.float())
    )
    return torch.ldexp(sums * rows, exponent)


def _below_one(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x divided by powers of two, which costs no digit, and the exponents of these."""
    _, exponent = torch.frexp(x.abs().amax(dim=-1, keepdim=True))
    return _times_power(x, -exponent), exponent


def _times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """x 2^exponent. The gradient of torch's ldexp is zero where the exponent is a negative integer."""
    return x * torch.ldexp(torch.ones_like(exponent, dtype=x.dtype), exponent)


def _rounded_product(x: Tensor, weight: Tensor) -> Tensor:
    if x.is_cuda and not torch.is_grad_enabled():  # torch has 16-bit products with float32 results only there
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        return torch.mm(rows, weight.t(), out_dtype=x.dtype).view(*x.shape[:-1], len(weight))
    return F.linear(x.to(weight.dtype), weight).to(x.dtype)


def _fake(x, weight, outputs, scales=None):  # type: ignore[no-untyped-def]
    return x.new_empty(len(x), outputs)


define(LINEAR_MANY_SCHEMA, linear_many_reference, _fake)
