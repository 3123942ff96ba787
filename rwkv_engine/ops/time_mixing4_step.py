"""time_mixing4_step: time mixing of one token in each of B sequences, with LayerNorm and residual, in one call.

With ln = LayerNorm(x) and mix_m(ln) = m ln + (1 - m) shift, where `shift` is ln of the previous token, and wkv the
recurrence of `ops.wkv4` (Peng et al. 2023, arXiv:2305.13048, section 3); `shift` and its state are replaced in place:

    r, k, v = Wr mix_r(ln), Wk mix_k(ln), Wv mix_v(ln);   y = x + Wo (sigmoid(r) wkv(k, v))

With float weights, activations and sums are float32; with int8 weights the inputs of products are quantised as in
`ops.linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, refuse_gradients
from rwkv_engine.ops.linear import linear_reference
from rwkv_engine.ops.slots import replace_rows, rows_of
from rwkv_engine.ops.wkv4 import wkv4_reference

TIME_MIXING4_STEP_SCHEMA = (
    "time_mixing4_step(Tensor x, Tensor ln_weight, Tensor ln_bias, float eps, Tensor mix_k, Tensor mix_v, Tensor mix_r,"
    " Tensor decay, Tensor first, Tensor key, Tensor value, Tensor receptance, Tensor output,"
    " Tensor(a!) shift, Tensor(b!) num, Tensor(c!) den, Tensor(d!) max,"
    " Tensor? slots, Tensor?[] scales) -> Tensor"
)


class TimeMixing4Step(NamedTuple):
    """The arguments of one step, in the order of the operator's schema.

    Attributes:
        x: (B, C) float32, the residual stream.
        ln_weight, ln_bias, mix_k, mix_v, mix_r: (C,) float32.
        eps: epsilon of the LayerNorm.
        decay, first: (A,) float32, -exp(time_decay) and time_first.
        key, value, receptance: (A, C) in tiles.
        output: (C, A) in tiles.
        shift: (S, C) float32, with any stride between rows; replaced in place by ln of this token.
        num, den, max: (S, A) float32, all with the same stride between rows; replaced in place.
        slots: (B,) int64 on x's device, the state's row for each row of x; other rows are left unchanged. Slots are
            distinct, except that rows whose result is discarded may share one. None: S = B, in the same order.
        scales: the scales of key, value, receptance and output, as for `ops.linear`; empty if all have float
            weights.
    """

    x: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    eps: float
    mix_k: Tensor
    mix_v: Tensor
    mix_r: Tensor
    decay: Tensor
    first: Tensor
    key: Tensor
    value: Tensor
    receptance: Tensor
    output: Tensor
    shift: Tensor
    num: Tensor
    den: Tensor
    max: Tensor
    slots: Tensor | None = None
    scales: Sequence[Tensor | None] = ()


def time_mixing4_step(step: TimeMixing4Step) -> Tensor:
    """RWKV-4's time mixing of one token in each of B sequences, with its LayerNorm and residual.

    Args:
        step: see `TimeMixing4Step`; `shift`, `num`, `den` and `max` are replaced in place.

    Returns:
        (B, C) float32.

    Raises:
        RuntimeError: shapes or dtypes do not match, or an argument requires a gradient, which the step does not have.
    """
    cpu_kernels.ensure_loaded()
    refuse_gradients(*step)
    return torch.ops.rwkv_engine.time_mixing4_step(*step)


def time_mixing4_step_reference(step: TimeMixing4Step) -> Tensor:
    """`time_mixing4_step` in plain torch."""
    now = F.layer_norm(step.x, step.x.shape[-1:], step.ln_weight, step.ln_bias, step.eps)
    last = rows_of(step.shift, step.slots)
    n_att = len(step.decay)
    of_key, of_value, of_receptance, of_output = step.scales or (None,) * 4
    k = linear_reference(torch.lerp(last, now, step.mix_k), step.key, n_att, of_key)
    v = linear_reference(torch.lerp(last, now, step.mix_v), step.value, n_att, of_value)
    r = linear_reference(torch.lerp(last, now, step.mix_r), step.receptance, n_att, of_receptance)
    before = (rows_of(t, step.slots) for t in (step.num, step.den, step.max))
    wkv, *state = wkv4_reference(step.decay, step.first, k.unsqueeze(1), v.unsqueeze(1), *before)
    y = step.x + linear_reference(torch.sigmoid(r) * wkv.squeeze(1), step.output, step.x.shape[-1], of_output)
    for old, new in zip((step.shift, step.num, step.den, step.max), (now, *state), strict=True):
        replace_rows(old, step.slots, new)
    return y


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


define(TIME_MIXING4_STEP_SCHEMA, lambda *step: time_mixing4_step_reference(TimeMixing4Step(*step)), _fake)
