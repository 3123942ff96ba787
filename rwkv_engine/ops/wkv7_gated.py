"""wkv7_gated: what follows RWKV-7's recurrence: GroupNorm, the bonus of the current token, and the gate.

out = (GroupNorm(y) + (r . (k r_k)) v) gate          in each head (Peng et al. 2025, arXiv:2503.14456, section 4)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, kernels_serve

WKV7_GATED_SCHEMA = (
    "wkv7_gated(Tensor y, Tensor r, Tensor k, Tensor v, Tensor gate, Tensor r_k, Tensor ln_weight, Tensor ln_bias)"
    " -> Tensor"
)
# The published models divide the outputs by 8 before a normalisation with 1e-5, which is the same as 64e-5.
GROUP_NORM_EPS = 64e-5


def wkv7_gated(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor, r_k: Tensor, ln_weight: Tensor, ln_bias: Tensor
) -> Tensor:
    """What the output product of time mixing takes. The torch reference runs for float64 and if a gradient is needed.

    Args:
        y: (M, A) float32, the output of `wkv7` for M tokens.
        r, k, v: (M, A) float32, what `wkv7` took.
        gate: (M, A) float32.
        r_k: (H, N) float32, with A = H N.
        ln_weight, ln_bias: (A,) float32, of GroupNorm, whose groups are the heads.

    Returns:
        (M, A) float32.

    Raises:
        RuntimeError: shapes or dtypes do not match.
    """
    arguments = y, r, k, v, gate, r_k, ln_weight, ln_bias
    if not kernels_serve(*arguments):
        return wkv7_gated_reference(*arguments)
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.wkv7_gated(*arguments)


def wkv7_gated_reference(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor, r_k: Tensor, ln_weight: Tensor, ln_bias: Tensor
) -> Tensor:
    """`wkv7_gated` in plain torch."""
    heads = r_k.shape
    own_r, own_k, own_v = (x.unflatten(-1, heads) for x in (r, k, v))
    bonus = ((own_r * own_k * r_k).sum(-1, keepdim=True) * own_v).flatten(-2)
    return (F.group_norm(y, heads[0], ln_weight, ln_bias, GROUP_NORM_EPS) + bonus) * gate


define(WKV7_GATED_SCHEMA, wkv7_gated_reference, lambda y, *_: torch.empty_like(y))
