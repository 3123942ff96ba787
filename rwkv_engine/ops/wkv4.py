"""wkv4: the RWKV-4 recurrence.

With w = decay = -exp(time_decay) and u = first = time_first, per channel (Peng et al. 2023, arXiv:2305.13048, eq. 16):

    wkv_t = (A_{t-1} + e^{u + k_t} v_t) / (B_{t-1} + e^{u + k_t})
    A_t = e^w A_{t-1} + e^{k_t} v_t          B_t = e^w B_{t-1} + e^{k_t}

The state represents A = num e^max and B = den e^max, where max is the largest exponent so far, to prevent overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, register_gradient

WKV4_SCHEMA = (
    "wkv4(Tensor decay, Tensor first, Tensor k, Tensor v, Tensor num, Tensor den, Tensor max)"
    " -> (Tensor y, Tensor num, Tensor den, Tensor max)"
)
WKV4_BACKWARD_SCHEMA = (
    "wkv4_backward(Tensor grad_y, Tensor grad_num, Tensor grad_den, Tensor grad_max,"
    " Tensor decay, Tensor first, Tensor k, Tensor v, Tensor num, Tensor den, Tensor max)"
    " -> (Tensor decay, Tensor first, Tensor k, Tensor v, Tensor num, Tensor den, Tensor max)"
)


def wkv4(
    decay: Tensor,
    first: Tensor,
    k: Tensor,
    v: Tensor,
    num: Tensor,
    den: Tensor,
    max: Tensor,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs the recurrence over T tokens; differentiable in all seven tensors.

    Args:
        decay: (C,), w = -exp(time_decay).
        first: (C,), u = time_first.
        k, v: (B, T, C), T >= 1; or (1, N, C) with `lengths`.
        num, den, max: (B, C), the state before the first token; at the beginning of a text 0, 0 and -1e30.
            All tensors are float32, or all are float64, on one device.
        lengths: the numbers of tokens of B texts, each at least 1, which k and v contain one after another, N in all.
            Neighbours of the same length are processed together.

    Returns:
        y, of the shape of k, and the new num, den, max (B, C). The arguments are not modified.

    Raises:
        RuntimeError: the shape, dtype or device of an argument does not match that of k.
    """
    cpu_kernels.ensure_loaded()
    if lengths is None:
        return torch.ops.rwkv_engine.wkv4(decay, first, k, v, num, den, max)
    outputs, row, text = [], 0, 0
    for length, same in groupby(lengths):
        n = sum(1 for _ in same)
        rows, texts = slice(row, row + n * length), slice(text, text + n)
        own_k, own_v = (tensor[0, rows].view(n, length, -1) for tensor in (k, v))
        y, *after = torch.ops.rwkv_engine.wkv4(decay, first, own_k, own_v, num[texts], den[texts], max[texts])
        outputs.append((y.view(1, n * length, -1), *after))
        row, text = rows.stop, texts.stop
    y, num, den, max = (torch.cat(parts, dim=axis) for parts, axis in zip(zip(*outputs), (1, 0, 0, 0), strict=True))
    return y, num, den, max


def wkv4_reference(
    decay: Tensor, first: Tensor, k: Tensor, v: Tensor, num: Tensor, den: Tensor, max: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`wkv4` in plain torch, one token after another."""
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        bonus = first + k_t
        q = torch.maximum(max, bonus)
        e1, e2 = torch.exp(max - q), torch.exp(bonus - q)
        outputs.append((e1 * num + e2 * v_t) / (e1 * den + e2))
        num, den, max = _update(decay, k_t, v_t, num, den, max)
    return torch.stack(outputs, dim=1), num.contiguous(), den.contiguous(), max.contiguous()


def _update(
    decay: Tensor, k_t: Tensor, v_t: Tensor, num: Tensor, den: Tensor, max: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    decayed = max + decay
    q = torch.maximum(decayed, k_t)
    e1, e2 = torch.exp(decayed - q), torch.exp(k_t - q)
    return e1 * num + e2 * v_t, e1 * den + e2, q


def wkv4_backward_reference(
    grad_y: Tensor,
    grad_num: Tensor,
    grad_den: Tensor,
    grad_max: Tensor,
    decay: Tensor,
    first: Tensor,
    k: Tensor,
    v: Tensor,
    num: Tensor,
    den: Tensor,
    max: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the seven arguments of `wkv4` in plain torch: the chain rule, last token first.

    The output does not depend on its q, which scales numerator and denominator equally. The new state depends on q
    through the maximum, whose gradient is divided equally at a tie.
    """
    before = []
    state = (num, den, max)
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        before.append(state)
        state = _update(decay, k_t, v_t, *state)

    grad_decay, grad_first = torch.zeros_like(decay), torch.zeros_like(first)
    grad_k, grad_v = _empty(k), _empty(v)
    for t in reversed(range(k.shape[1])):
        k_t, v_t, (num, den, max) = k[:, t], v[:, t], before[t]

        bonus = first + k_t
        q = torch.maximum(max, bonus)
        e1, e2 = torch.exp(max - q), torch.exp(bonus - q)
        denominator = e1 * den + e2
        y = (e1 * num + e2 * v_t) / denominator
        g = grad_y[:, t] / denominator
        grad_bonus = g * (v_t - y) * e2

        decayed = max + decay
        q = torch.maximum(decayed, k_t)
        f1, f2 = torch.exp(decayed - q), torch.exp(k_t - q)
        from_f1 = (grad_num * num + grad_den * den) * f1
        from_f2 = (grad_num * v_t + grad_den) * f2
        from_q = grad_max - from_f1 - from_f2
        share = 0.5 * (torch.sign(decayed - k_t) + 1)
        grad_decayed = from_f1 + share * from_q

        grad_k[:, t] = grad_bonus + from_f2 + (1 - share) * from_q
        grad_v[:, t] = g * e2 + grad_num * f2
        grad_decay += grad_decayed.sum(0)
        grad_first += grad_bonus.sum(0)
        grad_max = g * (num - y * den) * e1 + grad_decayed
        grad_num, grad_den = g * e1 + grad_num * f1, -g * y * e1 + grad_den * f1
    state_grads = (grad_num.contiguous(), grad_den.contiguous(), grad_max.contiguous())
    return grad_decay.contiguous(), grad_first.contiguous(), grad_k, grad_v, *state_grads


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _wkv4_fake(decay, first, k, v, num, den, max):  # type: ignore[no-untyped-def]
    return _empty(k), _empty(num), _empty(den), _empty(max)


def _wkv4_backward_fake(grad_y, grad_num, grad_den, grad_max, *inputs):  # type: ignore[no-untyped-def]
    return tuple(_empty(t) for t in inputs)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, *grads):  # type: ignore[no-untyped-def]
    return torch.ops.rwkv_engine.wkv4_backward(*grads, *ctx.saved_tensors)


def _no_second_derivative(ctx, *grads):  # type: ignore[no-untyped-def]
    raise RuntimeError("rwkv_engine::wkv4 has first derivatives only; do not use create_graph=True")


define(WKV4_SCHEMA, wkv4_reference, _wkv4_fake)
define(WKV4_BACKWARD_SCHEMA, wkv4_backward_reference, _wkv4_backward_fake)
register_gradient("wkv4", _backward, _setup_context)
# Without a registered derivative, torch would silently return zeros.
register_gradient("wkv4_backward", _no_second_derivative, _setup_context)
