"""time_mixing_step: time mixing of one token in each of B sequences, with LayerNorm and residual, in one call.

With ln = LayerNorm(x) and mix_m(ln) = m ln + (1 - m) shift, where `shift` is ln at the token before, and wkv that of
`ops.wkv4`, whose state is replaced in place:

    r, k, v = Wr mix_r(ln), Wk mix_k(ln), Wv mix_v(ln);   y = x + Wo (sigmoid(r) wkv(k, v))

Activations and sums are float32 beside float weights; beside int8 ones the inputs of products are as in `ops.linear`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, refuse_gradients
from rwkv_engine.ops.linear import linear_reference
from rwkv_engine.ops.slots import replace_rows, rows_of
from rwkv_engine.ops.wkv4 import wkv4_reference

TIME_MIXING_STEP_SCHEMA = (
    "time_mixing_step(Tensor x, Tensor ln_weight, Tensor ln_bias, float eps, Tensor mix_k, Tensor mix_v, Tensor mix_r,"
    " Tensor decay, Tensor first, Tensor key, Tensor value, Tensor receptance, Tensor output,"
    " Tensor(a!) shift, Tensor(b!) num, Tensor(c!) den, Tensor(d!) max,"
    " Tensor? slots, Tensor[] scales) -> Tensor"
)


def time_mixing_step(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    mix_k: Tensor,
    mix_v: Tensor,
    mix_r: Tensor,
    decay: Tensor,
    first: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    shift: Tensor,
    num: Tensor,
    den: Tensor,
    max: Tensor,
    slots: Tensor | None = None,
    scales: Sequence[Tensor] = (),
) -> Tensor:
    """Time mixing of one token, with its LayerNorm and residual.

    Args:
        x: (B, C) float32.
        ln_weight, ln_bias, mix_k, mix_v, mix_r: (C,) float32.
        eps: of the LayerNorm.
        decay, first: (A,) float32, -exp(time_decay) and time_first.
        key, value, receptance: (A, C) in tiles.
        output: (C, A) in tiles.
        shift: (S, C) float32, rows at any distance; replaced by this token's.
        num, den, max: (S, A) float32, rows equally far apart; replaced.
        slots: (B,) int64 on x's device, the state's row of each row of x, others stay as they are. Distinct, but that
            rows whose result nobody wants may share one. None: S = B, and they are in the same order.
        scales: of int8 matrices, those of key, value, receptance, output, see `ops.int8`; else none.

    Returns:
        (B, C) float32.

    Raises:
        RuntimeError: shapes or dtypes that do not fit, or an argument that wants a gradient: there is none.
    """
    cpu_kernels.ensure_loaded()
    arguments = (x, ln_weight, ln_bias, eps, mix_k, mix_v, mix_r, decay, first, key, value, receptance, output)
    refuse_gradients(*arguments, shift, num, den, max)
    return torch.ops.rwkv_engine.time_mixing_step(*arguments, shift, num, den, max, slots, list(scales))


def time_mixing_step_reference(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    mix_k: Tensor,
    mix_v: Tensor,
    mix_r: Tensor,
    decay: Tensor,
    first: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    shift: Tensor,
    num: Tensor,
    den: Tensor,
    max: Tensor,
    slots: Tensor | None = None,
    scales: Sequence[Tensor] = (),
) -> Tensor:
    """`time_mixing_step` in plain torch."""
    now = F.layer_norm(x, x.shape[-1:], ln_weight, ln_bias, eps)
    last = rows_of(shift, slots)
    n_att = len(decay)
    of_key, of_value, of_receptance, of_output = scales or (None,) * 4
    k = linear_reference(torch.lerp(last, now, mix_k), key, n_att, of_key)
    v = linear_reference(torch.lerp(last, now, mix_v), value, n_att, of_value)
    r = linear_reference(torch.lerp(last, now, mix_r), receptance, n_att, of_receptance)
    before = (rows_of(t, slots) for t in (num, den, max))
    wkv, *state = wkv4_reference(decay, first, k.unsqueeze(1), v.unsqueeze(1), *before)
    y = x + linear_reference(torch.sigmoid(r) * wkv.squeeze(1), output, x.shape[-1], of_output)
    for old, new in zip((shift, num, den, max), (now, *state), strict=True):
        replace_rows(old, slots, new)
    return y


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


define(TIME_MIXING_STEP_SCHEMA, time_mixing_step_reference, _fake)
