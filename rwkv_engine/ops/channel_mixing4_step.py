"""channel_mixing4_step: channel mixing of one token in each of B sequences, with LayerNorm and residual, in one call.

With ln = LayerNorm(x) and mix_m(ln) = m ln + (1 - m) shift, where `shift` is ln of the previous token and is replaced
in place (Peng et al. 2023, arXiv:2305.13048, section 3):

    r, k = Wr mix_r(ln), Wk mix_k(ln);   y = x + sigmoid(r) Wv relu(k)^2

With float weights, activations and sums are float32, so relu(k)^2 does not overflow; with int8 weights the inputs of
products are quantised as in `ops.linear`. Zeros of relu(k)^2 are skipped, which does not change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, refuse_gradients
from rwkv_engine.ops.in_floats import rows_in_floats
from rwkv_engine.ops.linear import linear_reference
from rwkv_engine.ops.slots import replace_rows, rows_of

CHANNEL_MIXING4_STEP_SCHEMA = (
    "channel_mixing4_step(Tensor x, Tensor ln_weight, Tensor ln_bias, float eps, Tensor mix_k, Tensor mix_r,"
    " Tensor key, Tensor receptance, Tensor value, Tensor(a!) shift,"
    " Tensor? slots, Tensor?[] scales) -> Tensor"
)


class ChannelMixing4Step(NamedTuple):
    """The arguments of one step, in the order of the operator's schema.

    Attributes:
        x: (B, C) float32, the residual stream.
        ln_weight, ln_bias, mix_k, mix_r: (C,) float32.
        eps: epsilon of the LayerNorm.
        key: (F, C) in tiles.
        receptance: (C, C) in tiles.
        value: (F, C), W^T row-major instead of tiles: row f has the weights of input f; int4 weights as in `ops.int4`.
        shift: (S, C) float32, with any stride between rows; replaced in place by ln of this token.
        slots: (B,) int64 or None, as in `TimeMixing4Step`.
        scales: the scales of key, receptance and value, as for `ops.linear`; empty if all have float
            weights.
    """

    x: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    eps: float
    mix_k: Tensor
    mix_r: Tensor
    key: Tensor
    receptance: Tensor
    value: Tensor
    shift: Tensor
    slots: Tensor | None = None
    scales: Sequence[Tensor | None] = ()


def channel_mixing4_step(step: ChannelMixing4Step) -> Tensor:
    """RWKV-4's channel mixing of one token in each of B sequences, with its LayerNorm and residual.

    Args:
        step: see `ChannelMixing4Step`; `shift` is replaced in place.

    Returns:
        (B, C) float32.

    Raises:
        RuntimeError: shapes or dtypes do not match, or an argument requires a gradient, which the step does not have.
    """
    cpu_kernels.ensure_loaded()
    refuse_gradients(*step)
    return torch.ops.rwkv_engine.channel_mixing4_step(*step)


def channel_mixing4_step_reference(step: ChannelMixing4Step) -> Tensor:
    """`channel_mixing4_step` in plain torch."""
    x, key, value = step.x, step.key, step.value
    now = F.layer_norm(x, x.shape[-1:], step.ln_weight, step.ln_bias, step.eps)
    last = rows_of(step.shift, step.slots)
    of_key, of_receptance, of_value = step.scales or (None,) * 3
    r = linear_reference(torch.lerp(last, now, step.mix_r), step.receptance, x.shape[-1], of_receptance)
    k = linear_reference(torch.lerp(last, now, step.mix_k), key, len(value), of_key)
    weight = rows_in_floats(value, x.shape[-1], of_value).to(x.dtype)
    y = x + torch.sigmoid(r) * F.linear(torch.relu(k).square(), weight)
    replace_rows(step.shift, step.slots, now)
    return y


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


define(CHANNEL_MIXING4_STEP_SCHEMA, lambda *step: channel_mixing4_step_reference(ChannelMixing4Step(*step)), _fake)
