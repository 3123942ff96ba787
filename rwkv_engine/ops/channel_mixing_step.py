"""channel_mixing_step: channel mixing of one token in each of B sequences, with LayerNorm and residual, in one call.

With ln = LayerNorm(x) and mix_m(ln) = m ln + (1 - m) shift, where `shift` is ln at the token before, which is replaced
in place:

    r, k = Wr mix_r(ln), Wk mix_k(ln);   y = x + sigmoid(r) Wv relu(k)^2

Activations and sums are float32 beside float weights, so relu(k)^2 cannot overflow; beside int8 ones the inputs of
products are as in `ops.linear`. Zeros of relu(k)^2 are skipped, which changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, refuse_gradients
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.linear import linear_reference
from rwkv_engine.ops.slots import replace_rows, rows_of

CHANNEL_MIXING_STEP_SCHEMA = (
    "channel_mixing_step(Tensor x, Tensor ln_weight, Tensor ln_bias, float eps, Tensor mix_k, Tensor mix_r,"
    " Tensor key, Tensor receptance, Tensor value, Tensor(a!) shift,"
    " Tensor? slots, Tensor[] scales) -> Tensor"
)


def channel_mixing_step(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    mix_k: Tensor,
    mix_r: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    shift: Tensor,
    slots: Tensor | None = None,
    scales: Sequence[Tensor] = (),
) -> Tensor:
    """Channel mixing of one token, with its LayerNorm and residual.

    Args:
        x: (B, C) float32.
        ln_weight, ln_bias, mix_k, mix_r: (C,) float32.
        eps: of the LayerNorm.
        key: (F, C) in tiles.
        receptance: (C, C) in tiles.
        value: (F, C), no tiles: row f is what input f adds to the outputs.
        shift: (S, C) float32, rows at any distance; replaced by this token's.
        slots: (B,) int64 or None, as for `time_mixing_step`.
        scales: of int8 matrices, those of key, receptance, value, see `ops.int8`; else none.

    Returns:
        (B, C) float32.

    Raises:
        RuntimeError: shapes or dtypes that do not fit, or an argument that wants a gradient: there is none.
    """
    cpu_kernels.ensure_loaded()
    arguments = (x, ln_weight, ln_bias, eps, mix_k, mix_r, key, receptance, value, shift)
    refuse_gradients(*arguments)
    return torch.ops.rwkv_engine.channel_mixing_step(*arguments, slots, list(scales))


def channel_mixing_step_reference(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    mix_k: Tensor,
    mix_r: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    shift: Tensor,
    slots: Tensor | None = None,
    scales: Sequence[Tensor] = (),
) -> Tensor:
    """`channel_mixing_step` in plain torch."""
    now = F.layer_norm(x, x.shape[-1:], ln_weight, ln_bias, eps)
    last = rows_of(shift, slots)
    of_key, of_receptance, of_value = scales or (None,) * 3
    r = linear_reference(torch.lerp(last, now, mix_r), receptance, x.shape[-1], of_receptance)
    k = linear_reference(torch.lerp(last, now, mix_k), key, len(value), of_key)
    y = x + torch.sigmoid(r) * F.linear(torch.relu(k).square(), in_floats(value.t(), of_value).to(x.dtype))
    replace_rows(shift, slots, now)
    return y


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


define(CHANNEL_MIXING_STEP_SCHEMA, channel_mixing_step_reference, _fake)
