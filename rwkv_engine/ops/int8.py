"""int8 weights: whole numbers q (N, K), and in one tensor the scales of their N rows, then of their K columns.

    W[n, k] = rows[n] q[n, k] columns[k]

The rows' scales are taken out of the sum and the columns' belong to the activations, so kernels multiply whole numbers.
"""

from __future__ import annotations

from torch import Tensor


def in_floats(weight: Tensor, scales: Tensor | None) -> Tensor:
    """W (N, K) in float32 from int8, in the dtype of the scales; float weights, without scales, as they are.

    Raises:
        RuntimeError: int8 without scales or scales without int8, or scales of another shape than (N + K,).
    """
    if weight.dtype.is_floating_point and scales is None:
        return weight
    if weight.dtype.is_floating_point or scales is None:
        raise RuntimeError(f"int8 weights need scales, others have none, got {weight.dtype} and {type(scales)}")
    rows, columns = scales.split(list(weight.shape))
    return weight * columns * rows.unsqueeze(-1)
