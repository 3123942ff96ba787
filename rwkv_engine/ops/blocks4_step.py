"""blocks4_step: consecutive layers of RWKV-4, one token in each of B sequences, in one call.

Each layer is `ops.time_mixing4_step` and then `ops.channel_mixing4_step`. On the CPU, one call computes all of them on
the same threads, with the same bits; elsewhere it calls these operators one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, refuse_gradients
from rwkv_engine.ops.channel_mixing4_step import ChannelMixing4Step, channel_mixing4_step
from rwkv_engine.ops.slots import replace_rows, rows_of
from rwkv_engine.ops.time_mixing4_step import TimeMixing4Step, time_mixing4_step

BLOCKS4_STEP_SCHEMA = (
    "blocks4_step(Tensor x, float eps, Tensor[] parameters, Tensor?[] scales, Tensor(a!)[] state, Tensor? slots,"
    " Tensor? before) -> Tensor"
)
# What a layer contributes to each list, those of time mixing first.
_PARAMETERS = (11, 7)
_SCALES = (4, 3)
_STATES = (4, 1)


class Blocks4Step(NamedTuple):
    """The arguments of one step of L layers, in the order of the operator's schema.

    Attributes:
        x: (B, C) float32, the residual stream.
        eps: epsilon of all LayerNorms.
        parameters: 18 tensors for each layer: those of `TimeMixing4Step` from `ln_weight` to `output`, then those of
            `ChannelMixing4Step` from `ln_weight` to `value`, without `eps`.
        scales: 7 for each layer, those of `TimeMixing4Step` and of `ChannelMixing4Step`; empty if all matrices have
            float weights.
        state: 5 tensors for each layer, `shift`, `num`, `den` and `max` of `TimeMixing4Step` and `shift` of
            `ChannelMixing4Step`; replaced in place.
        slots: (B,) int64 or None, as in `TimeMixing4Step`.
        before: (B,) int64 on x's device, the state's row that each row of x begins from, which is left unchanged unless
            it is its slot too. Rows take their turns in order, so a row may begin from the slot of an earlier one, as
            the tokens of one sequence do. None: each begins from its slot.
    """

    x: Tensor
    eps: float
    parameters: Sequence[Tensor]
    scales: Sequence[Tensor | None]
    state: Sequence[Tensor]
    slots: Tensor | None = None
    before: Tensor | None = None


def blocks4_step(step: Blocks4Step) -> Tensor:
    """RWKV-4's layers for one token in each of B sequences, with their LayerNorms and residuals.

    Args:
        step: see `Blocks4Step`; `state` is replaced in place.

    Returns:
        The residual stream after the last layer, (B, C) float32.

    Raises:
        RuntimeError: shapes or dtypes do not match, or an argument requires a gradient, which the step does not have.
    """
    cpu_kernels.ensure_loaded()
    refuse_gradients(step.x, *step.parameters, *step.state)
    return torch.ops.rwkv_engine.blocks4_step(*step)


def blocks4_step_reference(step: Blocks4Step) -> Tensor:
    """`blocks4_step` by the operators of its parts, row by row if rows begin from the states of others."""
    if step.before is not None:
        if step.slots is None:
            raise RuntimeError("rwkv_engine::blocks4_step: before: expected none without slots")
        rows = []
        for x, slot, before in zip(step.x.split(1), step.slots.split(1), step.before.split(1), strict=True):
            for field in step.state:
                replace_rows(field, slot, rows_of(field, before))
            rows.append(blocks4_step_reference(step._replace(x=x, slots=slot, before=None)))
        return torch.cat(rows)
    x = step.x
    layers = len(step.state) // sum(_STATES)
    parameters = _parts(step.parameters, _PARAMETERS, layers)
    scales = _parts(step.scales, _SCALES, layers) if step.scales else [((), ())] * layers
    state = _parts(step.state, _STATES, layers)
    for of_layer in zip(parameters, scales, state, strict=True):  # of each: time mixing, channel mixing
        time, channel = zip(*of_layer, strict=True)
        x = time_mixing4_step(TimeMixing4Step._make(_arguments(x, step, *time)))
        x = channel_mixing4_step(ChannelMixing4Step._make(_arguments(x, step, *channel)))
    return x


_Tensors = Sequence[Tensor | None]


def _parts(tensors: _Tensors, sizes: tuple[int, int], layers: int) -> list[tuple[_Tensors, _Tensors]]:
    """Divides a list among the layers, and that of each layer between time mixing and channel mixing."""
    first, both = sizes[0], sum(sizes)
    return [(tensors[i : i + first], tensors[i + first : i + both]) for i in range(0, layers * both, both)]


def _arguments(x: Tensor, step: Blocks4Step, parameters: _Tensors, scales: _Tensors, state: _Tensors) -> list[Any]:
    weight, bias, *others = parameters
    return [x, weight, bias, step.eps, *others, *state, step.slots, scales]


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


define(BLOCKS4_STEP_SCHEMA, lambda *step: blocks4_step_reference(Blocks4Step(*step)), _fake)
