"""embed_norm: what a decoding step begins with, the normalised embedding of one token of each sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define, wants_gradient

EMBED_NORM_SCHEMA = (
    "embed_norm(Tensor tokens, Tensor table, Tensor ln_weight, Tensor ln_bias, float eps,"
    " Tensor(a!)? positions=None, Tensor? slots=None, Tensor(b!)? after=None) -> Tensor"
)
_TABLES = (torch.float32, torch.bfloat16, torch.float16)


class Counted(NamedTuple):
    """The numbers of tokens of a pool's sequences, of which some get one more token: positions[slots] += 1.

    Attributes:
        positions: (S,) int64, changed in place.
        slots: (B,) int64, each in [0, S); what a slot gets that occurs several times is not defined.
        after: (B,) int64, which becomes the new positions[slots].
    """

    positions: Tensor
    slots: Tensor
    after: Tensor


def embed_norm(
    tokens: Tensor, table: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, counted: Counted | None = None
) -> Tensor:
    """LayerNorm(table[tokens]), on a GPU in one kernel. Elsewhere, and where a gradient is needed, in plain torch.

    Args:
        tokens: (B,) int64, each in [0, V); not checked on a GPU.
        table: (V, C), of a floating-point dtype.
        ln_weight, ln_bias: (C,) float32.
        eps: of the LayerNorm.
        counted: what the same kernel counts, on the same device; None for nothing.

    Returns:
        (B, C), of the dtype of `ln_weight`.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match.
    """
    served = table.is_cuda and table.dtype in _TABLES and ln_weight.dtype == torch.float32
    counts = counted or (None, None, None)
    if not served or wants_gradient(table, ln_weight, ln_bias):
        return embed_norm_reference(tokens, table, ln_weight, ln_bias, eps, *counts)
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.embed_norm(tokens, table, ln_weight, ln_bias, eps, *counts)


def embed_norm_reference(
    tokens: Tensor,
    table: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """`embed_norm` in plain torch."""
    if positions is not None and slots is not None and after is not None:
        positions.index_add_(0, slots, torch.ones_like(slots))
        torch.index_select(positions, 0, slots, out=after)
    x = F.embedding(tokens, table).to(ln_weight.dtype)
    return F.layer_norm(x, x.shape[-1:], ln_weight, ln_bias, eps)


def _fake(tokens, table, ln_weight, *_):  # type: ignore[no-untyped-def]
    return ln_weight.new_empty(len(tokens), table.shape[1])


define(EMBED_NORM_SCHEMA, embed_norm_reference, _fake)
