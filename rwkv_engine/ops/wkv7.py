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
# Tokens whose states the backward pass holds at once, besides one state for each such part of the text.
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
    for r_t, w_t, k_t, v_t, kappa_t, a_t in zip(*(x.unbind(1) for x in (r, w, k, v, kappa, a)), strict=True):
        removed = state @ kappa_t.unsqueeze(-1)
        state = state * w_t.unsqueeze(-2) - removed * (kappa_t * a_t).unsqueeze(-2) + v_t[..., None] * k_t[..., None, :]
        outputs.append((state @ r_t.unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, dim=1), state.contiguous()


def _backward(ctx, grad_y, grad_state):  # type: ignore[no-untyped-def]
    """Gradients of the seven arguments: the parts of the text are computed again from their states, last part first."""
    if torch.is_grad_enabled():
        raise RuntimeError("rwkv_engine::wkv7 has first derivatives only; do not use create_graph=True")
    *inputs, state = ctx.saved_tensors
    parts = list(zip(*(x.split(CHECKPOINT_EVERY, 1) for x in inputs), strict=True))
    states = [state]
    for part in parts[:-1]:
        states.append(torch.ops.rwkv_engine.wkv7(*part, states[-1])[1])
    grads = []
    for part, before, grad in reversed(list(zip(parts, states, grad_y.split(CHECKPOINT_EVERY, 1), strict=True))):
        leaves = [x.detach().requires_grad_() for x in (*part, before)]
        with torch.enable_grad():
            outputs = wkv7_reference(*leaves)
        *own, grad_state = torch.autograd.grad(outputs, leaves, (grad, grad_state))
        grads.append(own)
    return *(torch.cat(own[::-1], 1) for own in zip(*grads, strict=True)), grad_state


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _fake(r, w, k, v, kappa, a, state):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (r, state))


define(WKV7_SCHEMA, wkv7_reference, _fake)
register_gradient("wkv7", _backward, _setup_context)
