"""int8 weights: integers q (N, K) and one tensor of scales (N + K,), first those of the rows, then of the columns.

    W[n, k] = rows[n] q[n, k] columns[k]

A product multiplies the activations by the column scales before the sum and the sum by the row scales, so that
kernels can multiply integers.
"""

from __future__ import annotations

from torch import Tensor


def in_floats(weight: Tensor, scales: Tensor | None) -> Tensor:
    """W (N, K) from int8 weights, in the dtype of their scales (float32); float weights are returned unchanged.

    Raises:
        RuntimeError: int8 weights have no scales, float weights have some, or their shape is not (N + K,).
    """
    if weight.dtype.is_floating_point and scales is None:
        return weight
    if weight.dtype.is_floating_point or scales is None:
        raise RuntimeError(f"int8 weights need scales, float ones have none; got {weight.dtype} and {type(scales)}")
    rows, columns = scales.split(list(weight.shape))
    return weight * columns * rows.unsqueeze(-1)
