"""blocks7_step: consecutive layers of RWKV-7, one token in each of B sequences, in one call.

Each layer is time mixing and then channel mixing, with their LayerNorms and residuals (Peng et al. 2025,
arXiv:2503.14456, section 4). On the CPU, one call computes all of them on the same threads; on CUDA it launches the
kernels of one layer after the other, which a CUDA graph can capture. Without kernels it calls the operators of their
parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, refuse_gradients
from rwkv_engine.ops.linear import linear
from rwkv_engine.ops.linear_many import linear_many
from rwkv_engine.ops.ln_shift import ln_shift
from rwkv_engine.ops.slots import replace_rows, rows_of
from rwkv_engine.ops.squared_relu import squared_relu_
from rwkv_engine.ops.tiles import ROWS
from rwkv_engine.ops.wkv7 import wkv7
from rwkv_engine.ops.wkv7_gated import wkv7_gated_reference
from rwkv_engine.ops.wkv7_inputs import inputs_by

BLOCKS7_STEP_SCHEMA = (
    "blocks7_step(Tensor x, Tensor(a!) first, float eps, Tensor[] parameters, Tensor?[] scales, Tensor(b!)[] state,"
    " Tensor? slots, Tensor? before) -> Tensor"
)


class Layer7(NamedTuple):
    """The parameters of one layer, in their order in `Blocks7Step`.

    Matrices are in tiles, and the ranks of low-rank factors are padded with zeros to a multiple of 16. A layer without
    values to mix in, which is layer 0, has empty `v0`, `v1` and `v2`. Other tensors are float32. On CUDA, N is at most
    256, and `w2`, `a2`, `g2` and `v2` have the same dtype.

    Attributes:
        ln1_weight, ln1_bias: (C,).
        mixes: (6, C), the weights of this token in the mixes r, w, k, v, a and g, 1 - x_r and so on.
        w0, a0, v0: (A,).
        w1, a1, g1, v1: the transposed first factors, (rank, C), of floats.
        w2, a2, g2, v2: the transposed second factors, (A, rank), of floats.
        k_k, k_a: (A,).
        r_k: (H, N).
        ln_x_weight, ln_x_bias: (A,).
        receptance, key, value, output: (A, C), and (C, A).
        ln2_weight, ln2_bias: (C,).
        ffn_mix: (C,), the weight of this token, 1 - x_k.
        ffn_key: (F, C).
        ffn_value: (F, C), W^T row-major instead of tiles; int4 weights as in `ops.int4`.
    """

    ln1_weight: Tensor
    ln1_bias: Tensor
    mixes: Tensor
    w0: Tensor
    a0: Tensor
    v0: Tensor
    w1: Tensor
    w2: Tensor
    a1: Tensor
    a2: Tensor
    g1: Tensor
    g2: Tensor
    v1: Tensor
    v2: Tensor
    k_k: Tensor
    k_a: Tensor
    r_k: Tensor
    ln_x_weight: Tensor
    ln_x_bias: Tensor
    receptance: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    ln2_weight: Tensor
    ln2_bias: Tensor
    ffn_mix: Tensor
    ffn_key: Tensor
    ffn_value: Tensor


class Blocks7Step(NamedTuple):
    """The arguments of one step of L layers, in the order of the operator's schema.

    Attributes:
        x: (B, C) float32, the residual stream.
        first: (B, A) float32, the values of layer 0: layer 0 writes them, and the others read them.
        eps: epsilon of all LayerNorms.
        parameters: the 28 tensors of `Layer7` for each layer.
        scales: 6 for each layer, of receptance, key, value, output, ffn_key and ffn_value, as for `ops.linear`; empty
            if all matrices have float weights.
        state: 3 tensors for each layer, `att_shift` (S, C), `wkv` (S, H, N, N), whose rows are values and whose columns
            are keys, and `ffn_shift` (S, C); float32, with any stride between rows; replaced in place.
        slots: (B,) int64 or None, as in `TimeMixing4Step`.
        before: (B,) int64 or None, as in `Blocks4Step`.
    """

    x: Tensor
    first: Tensor
    eps: float
    parameters: Sequence[Tensor]
    scales: Sequence[Tensor | None]
    state: Sequence[Tensor]
    slots: Tensor | None = None
    before: Tensor | None = None


def blocks7_step(step: Blocks7Step) -> Tensor:
    """RWKV-7's layers for one token in each of B sequences, with their LayerNorms and residuals.

    Args:
        step: see `Blocks7Step`; `state` is replaced in place, and so is `first` if layer 0 is among the layers.

    Returns:
        The residual stream after the last layer, (B, C) float32.

    Raises:
        RuntimeError: shapes or dtypes do not match, or an argument requires a gradient, which the step does not have.
    """
    cpu_kernels.ensure_loaded()
    refuse_gradients(step.x, step.first, *step.parameters, *step.state)
    return torch.ops.rwkv_engine.blocks7_step(*step)


def blocks7_step_reference(step: Blocks7Step) -> Tensor:
    """`blocks7_step` by the operators of its parts, row by row if rows begin from the states of others."""
    if step.before is not None:
        if step.slots is None:
            raise RuntimeError("rwkv_engine::blocks7_step: before: expected none without slots")
        rows = []
        for x, first, slot, before in zip(
            step.x.split(1), step.first.split(1), step.slots.split(1), step.before.split(1), strict=True
        ):
            for field in step.state:
                replace_rows(field, slot, rows_of(field, before))
            rows.append(blocks7_step_reference(step._replace(x=x, first=first, slots=slot, before=None)))
        return torch.cat(rows)
    x = step.x
    for layer, scales, state in _layers(step):
        att_shift, wkv, ffn_shift = (rows_of(field, step.slots) for field in state)
        added, att_shift, wkv = _time_mixing(x, step.first, step.eps, layer, scales, att_shift, wkv)
        x = x + added
        norm = layer.ln2_weight, layer.ln2_bias, step.eps
        mixed, ffn_shift = ln_shift(x.unsqueeze(1), *norm, layer.ffn_mix.unsqueeze(0), ffn_shift)
        key = squared_relu_(linear(mixed.view_as(x), layer.ffn_key, len(layer.ffn_value), scales[4]))
        x = x + linear_many(key, layer.ffn_value, x.shape[-1], scales[5])
        for field, after in zip(state, (att_shift, wkv, ffn_shift), strict=True):
            replace_rows(field, step.slots, after)
    return x if step.parameters else x.clone()


def _layers(step: Blocks7Step) -> Iterator[tuple[Layer7, Sequence[Tensor | None], Sequence[Tensor]]]:
    """The parameters, scales and state of each layer."""
    n = len(Layer7._fields)
    for i in range(len(step.parameters) // n):
        layer = Layer7._make(step.parameters[i * n : i * n + n])
        yield layer, step.scales[i * 6 : i * 6 + 6] or (None,) * 6, step.state[i * 3 : i * 3 + 3]


def _time_mixing(
    x: Tensor,
    first: Tensor,
    eps: float,
    layer: Layer7,
    scales: Sequence[Tensor | None],
    shift: Tensor,
    wkv: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What time mixing adds to x (B, C), the new shift (B, C), and the new state (B, H, N, N)."""
    heads, n_att = layer.r_k.shape, layer.r_k.numel()
    mixed, shift = ln_shift(x.unsqueeze(1), layer.ln1_weight, layer.ln1_bias, eps, layer.mixes, shift)
    mixed = mixed.squeeze(2)
    r = linear(mixed[0], layer.receptance, n_att, scales[0])
    k = linear(mixed[2], layer.key, n_att, scales[1])
    v = linear(mixed[3], layer.value, n_att, scales[2])

    def low_rank(name: str, x: Tensor, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
        first_factor, second_factor = (getattr(layer, f"{name}{i}") for i in (1, 2))
        hidden = linear(x, first_factor, len(first_factor) * ROWS)
        return linear(hidden if activation is None else activation(hidden), second_factor, n_att)

    values = (first, layer.v0) if layer.v0.numel() else None
    if values is None:
        first.copy_(v)
    inputs = inputs_by(low_rank, mixed, k, v, values, heads[1], layer.w0, layer.a0, layer.k_k, layer.k_a)
    own_r, w, k, v, kappa, a = (tensor.view(len(x), 1, *heads) for tensor in (r, *inputs[:5]))
    y, wkv = wkv7(own_r, w, k, v, kappa, a, wkv)
    flat = y.reshape(-1, n_att)
    gated = wkv7_gated_reference(
        flat, r, inputs.k, inputs.v, inputs.gate, layer.r_k, layer.ln_x_weight, layer.ln_x_bias
    )
    return linear(gated, layer.output, x.shape[-1], scales[3]), shift, wkv


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


define(BLOCKS7_STEP_SCHEMA, lambda *step: blocks7_step_reference(Blocks7Step(*step)), _fake)
