"""norm_linear: y = LayerNorm(x) W^T for few rows x, with W in tiles; the logits that a decoding step ends with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define
from rwkv_engine.ops.linear import linear

NORM_LINEAR_SCHEMA = (
    "norm_linear(Tensor x, Tensor ln_weight, Tensor ln_bias, float eps, Tensor tiles, int outputs,"
    " Tensor? scales=None) -> Tensor"
)


def norm_linear(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    tiles: Tensor,
    outputs: int,
    scales: Tensor | None = None,
) -> Tensor:
    """`linear` of LayerNorm(x), on a GPU in one kernel for up to 4 rows, and elsewhere in two.

    The bits of a row of y do not depend on the number of rows.

    Args:
        x: (B, K) float32, at most as many rows as for `linear`.
        ln_weight, ln_bias: (K,) float32.
        eps: of the LayerNorm.
        tiles, outputs, scales: as for `linear`.

    Returns:
        (B, outputs) float32.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match.
    """
    if not x.is_cuda:
        return norm_linear_reference(x, ln_weight, ln_bias, eps, tiles, outputs, scales)
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.norm_linear(x, ln_weight, ln_bias, eps, tiles, outputs, scales)


def norm_linear_reference(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    tiles: Tensor,
    outputs: int,
    scales: Tensor | None = None,
) -> Tensor:
    """`norm_linear` by torch's LayerNorm and `linear`."""
    return linear(F.layer_norm(x, x.shape[-1:], ln_weight, ln_bias, eps), tiles, outputs, scales)


def _fake(x, ln_weight, ln_bias, eps, tiles, outputs, scales=None):  # type: ignore[no-untyped-def]
    return x.new_empty(len(x), outputs)


define(NORM_LINEAR_SCHEMA, norm_linear_reference, _fake)
