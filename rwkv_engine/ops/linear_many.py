"""linear_many: y = x W^T for many rows x, with W in the memory layouts that decoding uses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define
from rwkv_engine.ops.in_floats import rows_in_floats, tiles_in_floats
from rwkv_engine.ops.quantised_product import has_quantised_product, quantised_product
from rwkv_engine.ops.scale_rows import scale_rows
from rwkv_engine.ops.tiles import untile

LINEAR_MANY_SCHEMA = "linear_many(Tensor x, Tensor weight, int outputs, Tensor? scales=None) -> Tensor"


def linear_many(x: Tensor, weight: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """y = x W^T for many rows x. On the CPU the bits of a row of y do not depend on the number of rows.

    Sums are float32. The dtype of the activations in the product depends on the weights. With bfloat16 weights they
    are rounded to bfloat16 on processors with fast bfloat16 dot products (`native.ways`), and so they are with int4
    weights as W^T, which become bfloat16 as well. With quantised weights in tiles or int8 they are quantised as in
    `ops.linear`, and on GPUs rounded to float16, like int4 weights without their column scales. The torch reference,
    which runs on every device without a kernel of its own, rounds them to the dtype of 16-bit weights, see
    `dense_product`. Otherwise they stay float32.

    Args:
        x: (M, K) float32.
        weight: W (N, K) as `ops.tiles.tile` writes it, or W^T (K, N) row-major; float32, bfloat16, float16 or int8.
            int4 weights are uint8, in one of the two layouts of `ops.int4`.
        outputs: N.
        scales: as for `ops.linear`.

    Returns:
        (M, N) float32.

    Raises:
        RuntimeError: shapes or dtypes do not match.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.linear_many(x, weight, outputs, scales)


def linear_many_reference(x: Tensor, weight: Tensor, outputs: int, scales: Tensor | None = None) -> Tensor:
    """`linear_many` in plain torch."""
    in_tiles = weight.ndim != 2
    if scales is not None and has_quantised_product(x, weight):
        columns = scales.split([len(scales) - x.shape[1], x.shape[1]])[1]
        return quantised_product(*scale_rows(x, columns), weight, outputs, scales)
    if x.is_cuda and weight.dtype == torch.int8 and scales is not None:
        return int8_product(x, untile(weight, outputs, x.shape[1]) if in_tiles else weight.t(), scales)
    if on_gpu_in_int4 := x.is_cuda and weight.dtype == torch.uint8 and scales is not None:
        assert scales is not None
        x, scales = x * scales, torch.ones_like(scales)
    matrix = (
        tiles_in_floats(weight, outputs, x.shape[1], scales) if in_tiles else rows_in_floats(weight, outputs, scales)
    )
    # float16 takes half the memory, and its rounding errors are a hundredth of those of 4 bits. Without the scales of
    # the columns the numbers are within its range, because the quantiser makes them about 1.
    return dense_product(x, matrix.half() if on_gpu_in_int4 else matrix)


def dense_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) float32 times W^T, with W (N, K) of any floating-point dtype -> (..., N) in the dtype of x.

    It has a gradient. With 16-bit weights, the activations are rounded to the same dtype, as torch's products require.
    For float16, each row is first scaled below 1 by a power of two, because relu(k)^2 can exceed 65504.
    """
    if weight.dtype == x.dtype:
        return F.linear(x, weight).to(x.dtype)  # under autocast the product has another dtype
    if weight.dtype == torch.bfloat16:
        return _rounded_product(x, weight)
    if _has_mixed_products(x):
        halves, powers = scale_rows(x.reshape(-1, x.shape[-1]))
        return torch.mm(halves, weight.t(), out_dtype=x.dtype).mul_(powers).view(*x.shape[:-1], len(weight))
    x, exponent = _below_one(x)
    return _times_power(_rounded_product(x, weight), exponent)


def mixed_product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (..., K) times W^T, both bfloat16 or both float16, on a GPU -> (..., N) float32. It has no gradient."""
    flat = rows.view(-1, rows.shape[-1])
    return torch.mm(flat, weight.t(), out_dtype=torch.float32).view(*rows.shape[:-1], len(weight))


def rounded_for(x: Tensor, *weights: Tensor) -> torch.dtype | None:
    """The 16-bit dtype that the activations x are rounded to before products with these weights.

    None where weights have other dtypes than one of 16 bits, or where `mixed_product` cannot serve.
    """
    dtype = weights[0].dtype
    is_rounded = dtype in (torch.bfloat16, torch.float16) and all(weight.dtype == dtype for weight in weights)
    return dtype if is_rounded and x.dtype == torch.float32 and _has_mixed_products(x) else None


def int8_product(x: Tensor, q: Tensor, scales: Tensor) -> Tensor:
    """x (M, K) float32 times W^T -> (M, N) float32 on a GPU, with int8 weights W as in `ops.int8`, in float16.

    float16 represents q exactly, and takes half the memory of a float32 copy of W. Each row of activations is
    multiplied by the column scales, scaled below 1 by a power of two, and rounded to float16; the error of an
    activation is at most 2^-11 of itself or 2^-25. Sums are float32.
    """
    rows, columns = scales.split(list(q.shape))
    halves, powers = scale_rows(x, columns)
    weight = q.half()
    # Sums can exceed 65504, so the result must be float32. Where torch cannot return float32 from a float16 product,
    # the same numbers are multiplied in float32.
    sums = (
        torch.mm(halves, weight.t(), out_dtype=torch.float32) if x.is_cuda else F.linear(halves.float(), weight.float())
    )
    return sums.mul_(rows).mul_(powers)


def _below_one(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of x divided by powers of two, which is exact, and the exponents of these powers."""
    _, exponent = torch.frexp(x.abs().amax(dim=-1, keepdim=True))
    return _times_power(x, -exponent), exponent


def _times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """x 2^exponent. The gradient of torch's ldexp is zero where the exponent is a negative integer."""
    return x * torch.ldexp(torch.ones_like(exponent, dtype=x.dtype), exponent)


def _has_mixed_products(x: Tensor) -> bool:
    """Whether torch has 16-bit products with float32 results for x, which have no gradient."""
    return x.is_cuda and not torch.is_grad_enabled()


def _rounded_product(x: Tensor, weight: Tensor) -> Tensor:
    if _has_mixed_products(x):
        return mixed_product(x.contiguous().to(weight.dtype), weight)
    return F.linear(x.to(weight.dtype), weight).to(x.dtype)


def _fake(x, weight, outputs, scales=None):  # type: ignore[no-untyped-def]
    return x.new_empty(len(x), outputs)


define(LINEAR_MANY_SCHEMA, linear_many_reference, _fake)
