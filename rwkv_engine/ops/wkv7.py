"""wkv7: the RWKV-7 recurrence, a generalised delta rule.

Each head has a matrix S (N, N), whose rows are values and whose columns are keys (Peng et al. 2025, arXiv:2503.14456,
eq. 17 and 18, transposed):

    S_t = S_{t-1} diag(w_t) - (S_{t-1} kappa_t) (kappa_t a_t)^T + v_t k_t^T          y_t = S_t r_t
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, register_gradient

WKV7_SCHEMA = (
    "wkv7(Tensor r, Tensor w, Tensor k, Tensor v, Tensor kappa, Tensor a, Tensor state) -> (Tensor y, Tensor state)"
)
WKV7_BACKWARD_SCHEMA = (
    "wkv7_backward(Tensor grad_y, Tensor grad_state,"
    " Tensor r, Tensor w, Tensor k, Tensor v, Tensor kappa, Tensor a, Tensor state)"
    " -> (Tensor r, Tensor w, Tensor k, Tensor v, Tensor kappa, Tensor a, Tensor state)"
)
# Tokens whose states the reference's backward pass holds at once, besides one state for each such part of the text.
CHECKPOINT_EVERY = 16


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    a: Tensor,
    state: Tensor,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs the recurrence over T tokens; differentiable in all seven tensors.

    Args:
        r: (B, T, H, N), T >= 1, the receptance, which reads from the state; or (1, M, H, N) with `lengths`.
        w: the decay of each key, in (0, 1).
        k, v: the key and the value that are added.
        kappa: the key that is removed, of length 1 in each head.
        a: how much of it is removed and replaced, in (0, 1). All six have the same shape.
        state: (B, H, N, N), the state before the first token; zero at the beginning of a text.
            All tensors are float32, or all are float64, on one device.
        lengths: the numbers of tokens of B texts, each at least 1, which the others contain one after another, M in
            all. Neighbours of the same length are processed together.

    Returns:
        y, of the shape of r, and the new state (B, H, N, N). The arguments are not modified.

    Raises:
        RuntimeError: the shape, dtype or device of an argument does not match that of r.
    """
    cpu_kernels.ensure_loaded()
    if lengths is None:
        return torch.ops.rwkv_engine.wkv7(r, w, k, v, kappa, a, state)
    outputs, states, row, text = [], [], 0, 0
    for length, same in groupby(lengths):
        n = sum(1 for _ in same)
        rows = slice(row, row + n * length)
        own = (tensor[0, rows].view(n, length, *tensor.shape[2:]) for tensor in (r, w, k, v, kappa, a))
        y, after = torch.ops.rwkv_engine.wkv7(*own, state[text : text + n])
        outputs.append(y.flatten(0, 1))
        states.append(after)
        row, text = rows.stop, text + n
    return torch.cat(outputs).unsqueeze(0), torch.cat(states)


def wkv7_reference(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`wkv7` in plain torch, one token after another."""
    outputs = []
    for r_t, *token in _tokens(r, w, k, v, kappa, a):
        state = _update(state, *token)
        outputs.append(_times(state, r_t))
    return torch.stack(outputs, dim=1), state.contiguous()


def _tokens(*inputs: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.unbind(1) for x in inputs), strict=True))


def _update(state: Tensor, w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor) -> Tensor:
    removed = state @ kappa.unsqueeze(-1)
    return state * w.unsqueeze(-2) - removed * (kappa * a).unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)


def wkv7_backward_reference(
    grad_y: Tensor,
    grad_state: Tensor,
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    a: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the seven arguments of `wkv7` in plain torch, last token first.

    Each part of the text computes its states again from the one before it, so only one part's are held at once.
    """
    parts = list(zip(*(x.split(CHECKPOINT_EVERY, 1) for x in (r, w, k, v, kappa, a)), strict=True))
    states = [state]
    for part in parts[:-1]:
        states.append(torch.ops.rwkv_engine.wkv7(*part, states[-1])[1])
    grads: list[tuple[Tensor, ...]] = []
    for part, before, grad in reversed(list(zip(parts, states, grad_y.split(CHECKPOINT_EVERY, 1), strict=True))):
        own, grad_state = _part_backward(grad, grad_state, part, before)
        grads.extend(own)
    r, w, k, v, kappa, a = (torch.stack(own[::-1], 1) for own in zip(*grads, strict=True))
    return r, w, k, v, kappa, a, grad_state.contiguous()


def _part_backward(
    grad_y: Tensor, grad_state: Tensor, part: Sequence[Tensor], state: Tensor
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """The chain rule: gradients of the inputs of each token, last token first, and of the state before the first."""
    tokens, states = _tokens(*part), [state]
    for _, *token in tokens:
        states.append(_update(states[-1], *token))
    grads: list[tuple[Tensor, ...]] = []
    for r, w, k, v, kappa, a in reversed(tokens):
        grad, after, before = grad_y[:, len(states) - 2], states.pop(), states[-1]
        grad_state = grad_state + grad.unsqueeze(-1) * r.unsqueeze(-2)
        removed, grad_removed = _times(before, kappa), -_times(grad_state, kappa * a)
        grad_replaced = -_times(grad_state.mT, removed)  # with respect to kappa * a
        grads.append(
            (
                _times(after.mT, grad),
                (grad_state * before).sum(-2),
                _times(grad_state.mT, v),
                _times(grad_state, k),
                grad_replaced * a + _times(before.mT, grad_removed),
                grad_replaced * kappa,
            )
        )
        grad_state = grad_state * w.unsqueeze(-2) + grad_removed.unsqueeze(-1) * kappa.unsqueeze(-2)
    return grads, grad_state


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _backward(ctx, grad_y, grad_state):  # type: ignore[no-untyped-def]
    return torch.ops.rwkv_engine.wkv7_backward(grad_y, grad_state, *ctx.saved_tensors)


def _no_second_derivative(ctx, *grads):  # type: ignore[no-untyped-def]
    raise RuntimeError("rwkv_engine::wkv7 has first derivatives only; do not use create_graph=True")


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _empty(*like: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in like)


def _fake(r, w, k, v, kappa, a, state):  # type: ignore[no-untyped-def]
    return _empty(r, state)


def _backward_fake(grad_y, grad_state, *inputs):  # type: ignore[no-untyped-def]
    return _empty(*inputs)


define(WKV7_SCHEMA, wkv7_reference, _fake)
define(WKV7_BACKWARD_SCHEMA, wkv7_backward_reference, _backward_fake)
register_gradient("wkv7", _backward, _setup_context)
# Without a registered derivative, torch would silently return zeros.
register_gradient("wkv7_backward", _no_second_derivative, _setup_context)
