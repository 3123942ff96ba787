"""most_likely: the most likely token of each row of logits, if the row is sound."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define

MOST_LIKELY_SCHEMA = "most_likely(Tensor logits) -> Tensor"


def most_likely(logits: Tensor) -> Tensor:
    """The first of the largest logits of each row: `draw_tokens` at temperature 0.

    Args:
        logits: (B, V), float32, or float64 with -inf for banned tokens.

    Returns:
        (B,) int64; -1 for rows as in `draw_tokens`.

    Raises:
        RuntimeError: the shape or dtype does not match.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.most_likely(logits)


def most_likely_reference(logits: Tensor) -> Tensor:
    """`most_likely` in plain torch."""
    lowest, largest = logits.aminmax(dim=-1)  # both are NaN if a logit is
    is_sound = largest.isfinite() & (lowest.isfinite() | (logits.dtype == torch.float64))
    return logits.argmax(dim=-1).masked_fill(~is_sound, -1)


define(MOST_LIKELY_SCHEMA, most_likely_reference, lambda logits: logits.new_empty(len(logits), dtype=torch.int64))
