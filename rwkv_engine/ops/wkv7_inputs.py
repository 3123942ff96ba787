"""wkv7_inputs: what RWKV-7's recurrence takes besides the receptance, and the gate, from the mixes of many tokens.

Low-rank products of the mixes give the decay w, the rate a, the gate g, and the mix of the values with those of layer 0
(Peng et al. 2025, arXiv:2503.14456, section 4):

    w = exp(-e^(-1/2) sigmoid(w0 + tanh(x_w W1) W2))     a = sigmoid(a0 + x_a A1 A2)     g = sigmoid(x_g G1) G2
    v' = v + (v_first - v) sigmoid(v0 + x_v V1 V2)       kappa = normalised(k k_k)       k' = k (1 + (a - 1) k_a)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, refuse_gradients
from rwkv_engine.ops.linear_many import linear_many
from rwkv_engine.ops.tiles import ROWS

WKV7_INPUTS_SCHEMA = (
    "wkv7_inputs(Tensor mixed, Tensor k, Tensor v, Tensor? first, int head_size, Tensor[] parameters)"
    " -> (Tensor w, Tensor k, Tensor v, Tensor kappa, Tensor a, Tensor gate)"
)
# The name of a low-rank product and the activation between its factors, applied to its input (..., C): (..., A).
LowRank = Callable[[str, Tensor, Callable[[Tensor], Tensor] | None], Tensor]


class Gates7(NamedTuple):
    """The parameters of `wkv7_inputs`, in their order; as in `Layer7`, whose layer 0 has empty v0, v1 and v2."""

    w0: Tensor
    a0: Tensor
    v0: Tensor
    k_k: Tensor
    k_a: Tensor
    w1: Tensor
    w2: Tensor
    a1: Tensor
    a2: Tensor
    g1: Tensor
    g2: Tensor
    v1: Tensor
    v2: Tensor


class Wkv7Inputs(NamedTuple):
    """What `wkv7` takes besides r, and the gate; each (..., A)."""

    w: Tensor
    k: Tensor
    v: Tensor
    kappa: Tensor
    a: Tensor
    gate: Tensor


def wkv7_inputs(
    mixed: Tensor, k: Tensor, v: Tensor, first: Tensor | None, head_size: int, parameters: Gates7
) -> Wkv7Inputs:
    """The inputs of the recurrence for M tokens, without a gradient, which packed weights do not have.

    On the CPU, a token has the bits that `blocks7_step` computes for it, whatever M is: activations of the low-rank
    products and their sums are float32.

    Args:
        mixed: (6, M, C) float32, the mixes r, w, k, v, a and g.
        k, v: (M, A) float32, the products of their mixes.
        first: (M, A) float32, the values of layer 0; not used in layer 0 itself.
        head_size: N, a divisor of A.
        parameters: see `Gates7`.

    Raises:
        RuntimeError: shapes or dtypes do not match, or an argument requires a gradient.
    """
    cpu_kernels.ensure_loaded()
    refuse_gradients(mixed, k, v, first, *parameters)
    return Wkv7Inputs(*torch.ops.rwkv_engine.wkv7_inputs(mixed, k, v, first, head_size, parameters))


def wkv7_inputs_reference(
    mixed: Tensor, k: Tensor, v: Tensor, first: Tensor | None, head_size: int, parameters: Sequence[Tensor]
) -> Wkv7Inputs:
    """`wkv7_inputs` in plain torch."""
    own = Gates7(*parameters)

    def low_rank(name: str, x: Tensor, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
        first_factor, second_factor = (getattr(own, f"{name}{i}") for i in (1, 2))
        hidden = linear_many(x, first_factor, len(first_factor) * ROWS)
        return linear_many(hidden if activation is None else activation(hidden), second_factor, k.shape[-1])

    values = (first, own.v0) if first is not None and own.v0.numel() else None
    return inputs_by(low_rank, mixed, k, v, values, head_size, own.w0, own.a0, own.k_k, own.k_a)


def inputs_by(
    low_rank: LowRank,
    mixed: Tensor,
    k: Tensor,
    v: Tensor,
    values: tuple[Tensor, Tensor] | None,
    head_size: int,
    w0: Tensor,
    a0: Tensor,
    k_k: Tensor,
    k_a: Tensor,
) -> Wkv7Inputs:
    """The equations, by low-rank products: mixed (6, ..., C), the others (..., A); `values` are `first` and v0."""
    _, w_in, _, v_in, a_in, g_in = mixed.unbind(0)
    w = torch.exp(-math.exp(-0.5) * torch.sigmoid(w0 + low_rank("w", w_in, torch.tanh)))
    a = torch.sigmoid(a0 + low_rank("a", a_in, None))
    if values is not None:
        first, v0 = values
        v = torch.lerp(v, first, torch.sigmoid(v0 + low_rank("v", v_in, None)))
    kappa = F.normalize((k * k_k).unflatten(-1, (-1, head_size)), dim=-1, eps=1e-12).flatten(-2)
    return Wkv7Inputs(w, k * (1 + (a - 1) * k_a), v, kappa, a, low_rank("g", g_in, torch.sigmoid))


def _operator(*arguments):  # type: ignore[no-untyped-def]
    """An operator's results are new memory, and the values of layer 0 are those that were given."""
    _, _, v, *_ = arguments
    results = wkv7_inputs_reference(*arguments)
    return tuple(results._replace(v=v.clone()) if results.v is v else results)


def _fake(mixed, k, v, first, head_size, parameters):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(k) for _ in Wkv7Inputs._fields)


define(WKV7_INPUTS_SCHEMA, _operator, _fake)
