"""RWKV-4 over prompts: what is derived once from a layer's parameters, and the inputs of its products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwkv_engine.models.weights import Dense, InputMajor, Tiled
from rwkv_engine.ops import ln_shift, ln_shift_rounded
from rwkv_engine.ops.linear_many import rounded_for
from rwkv_engine.ops.ln_shift import largest_mixed

LARGEST_FLOAT16 = 65504.0


class Derived:
    """What one half of a layer derives from its parameters before a prompt.

    Attributes:
        mixes: (M, C), the shares of the current token, stacked.
        decay: (A,), -exp(time_decay); None in channel mixing.
    """

    def __init__(self, mixes: Tensor, decay: Tensor | None, norm: nn.LayerNorm):
        self.mixes, self.decay, self._norm = mixes, decay, norm
        self._largest: float | None = None

    def rounded_for(self, x: Tensor, *matrices: Dense | Tiled | InputMajor) -> torch.dtype | None:
        """The dtype of 16 bits that the operators around the products of x round to, so that no kernel only converts.

        None where they stay float32: off GPUs, with gradients, with other weights than packed ones of one dtype of 16
        bits, and where the inputs of a product could exceed float16.
        """
        stored = [
            matrix.rows if isinstance(matrix, InputMajor) else getattr(matrix, "tiles", None) for matrix in matrices
        ]
        packed = [weight for weight in stored if weight is not None]
        dtype = rounded_for(x, *packed) if len(packed) == len(matrices) else None
        if dtype == torch.float16:
            if self._largest is None:  # only now, because a GPU's number is waited for
                assert self._norm.bias is not None
                self._largest = largest_mixed(self._norm.weight, self._norm.bias, self.mixes)
            return dtype if self._largest < LARGEST_FLOAT16 else None
        return dtype


def shifted(
    x: Tensor,
    norm: nn.LayerNorm,
    mixes: Tensor,
    shift: Tensor,
    lengths: Sequence[int] | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """`ln_shift` with the parameters of a LayerNorm, rounded to a dtype if there is one."""
    norm_and_mixes = norm.weight, norm.bias, norm.eps, mixes
    if dtype is None:
        return ln_shift(x, *norm_and_mixes, shift, lengths)
    return ln_shift_rounded(x, *norm_and_mixes, shift, dtype, lengths)
