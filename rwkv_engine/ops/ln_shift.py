"""ln_shift: LayerNorm and token shift, which give the inputs of the matrix products of time or channel mixing.

    ln_t = LayerNorm(x_t);   mixed_{m,t} = mix_m ln_t + (1 - mix_m) ln_{t-1}

where ln before the first token is part of the state (Peng et al. 2023, arXiv:2305.13048, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, kernels_serve

LN_SHIFT_SCHEMA = (
    "ln_shift(Tensor x, Tensor ln_weight, Tensor ln_bias, float eps, Tensor mixes, Tensor shift) -> (Tensor, Tensor)"
)
LN_SHIFT_ROUNDED_SCHEMA = (
    "ln_shift_rounded(Tensor x, Tensor ln_weight, Tensor ln_bias, float eps, Tensor mixes, Tensor shift,"
    " ScalarType dtype) -> (Tensor, Tensor)"
)


def ln_shift(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    mixes: Tensor,
    shift: Tensor,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """LayerNorm and token shift of T tokens. The torch reference runs for float64 and if a gradient is needed.

    Args:
        x: (B, T, C) float32, T >= 1, the residual stream; or (1, N, C) with `lengths`.
        ln_weight, ln_bias: (C,), the parameters of the LayerNorm.
        eps: epsilon of the LayerNorm.
        mixes: (M, C), for each of M products the weight of the current token.
        shift: (B, C), the LayerNorm of the token before the first.
        lengths: the numbers of tokens of B texts, each at least 1, which x contains one after another, N in all.

    Returns:
        The inputs of the products, (M, B, T, C) or (M, 1, N, C), and the LayerNorm of the last token (B, C).

    Raises:
        RuntimeError: shapes or dtypes do not match.
    """
    if lengths is not None:

        def shifted(rows: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
            return ln_shift(rows, ln_weight, ln_bias, eps, mixes, before)

        return _of_texts(shifted, x, shift, lengths)
    if not kernels_serve(x, ln_weight, ln_bias, mixes, shift):
        return ln_shift_reference(x, ln_weight, ln_bias, eps, mixes, shift)
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.ln_shift(x, ln_weight, ln_bias, eps, mixes, shift)


def ln_shift_rounded(
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    mixes: Tensor,
    shift: Tensor,
    dtype: torch.dtype,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """`ln_shift` whose first result is rounded to bfloat16 or float16, for products on a GPU; without gradients.

    Numbers beyond 65504 become infinite in float16; `largest_mixed` tells whether there can be any.
    """
    cpu_kernels.ensure_loaded()

    def shifted(rows: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.rwkv_engine.ln_shift_rounded(rows, ln_weight, ln_bias, eps, mixes, before, dtype)

    return shifted(x, shift) if lengths is None else _of_texts(shifted, x, shift, lengths)


def largest_mixed(ln_weight: Tensor, ln_bias: Tensor, mixes: Tensor) -> float:
    """A bound of what `ln_shift` gives for any x, if the state was made by the same LayerNorm."""
    # sqrt(C - 1) is the largest distance from the mean of C numbers, in standard deviations.
    normalised = len(ln_weight) ** 0.5 * ln_weight.abs().max() + ln_bias.abs().max()
    return float(normalised * (mixes.abs() + (1 - mixes).abs()).max())


def _of_texts(
    shifted: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, shift: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`ln_shift` of texts one after another: as one text, of which the first row of each text is then replaced."""
    ends = torch.tensor(list(accumulate(lengths)), device=x.device)
    starts = ends - torch.tensor(list(lengths), device=x.device)
    mixed, _ = shifted(x, shift[:1])
    mixed[:, 0, starts] = shifted(x[0, starts].unsqueeze(1), shift)[0].squeeze(2)
    return mixed, shifted(x[0, ends - 1].unsqueeze(1), shift)[1]


def ln_shift_reference(
    x: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, mixes: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`ln_shift` in plain torch."""
    now = F.layer_norm(x, x.shape[-1:], ln_weight, ln_bias, eps)
    last = torch.cat([shift.unsqueeze(1), now[:, :-1]], dim=1)
    return torch.lerp(last, now, mixes[:, None, None]), now[:, -1].clone()


def _rounded_reference(x, ln_weight, ln_bias, eps, mixes, shift, dtype):  # type: ignore[no-untyped-def]
    mixed, last = ln_shift_reference(x, ln_weight, ln_bias, eps, mixes, shift)
    return mixed.to(dtype), last


def _rounded_fake(x, ln_weight, ln_bias, eps, mixes, shift, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty(len(mixes), *x.shape, dtype=dtype), torch.empty_like(shift)


def _fake(x, ln_weight, ln_bias, eps, mixes, shift):  # type: ignore[no-untyped-def]
    return x.new_empty(len(mixes), *x.shape), torch.empty_like(shift)


define(LN_SHIFT_SCHEMA, ln_shift_reference, _fake)
define(LN_SHIFT_ROUNDED_SCHEMA, _rounded_reference, _rounded_fake)
