"""advance_positions: counts one more token for some of the sequences of a pool."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define

ADVANCE_POSITIONS_SCHEMA = "advance_positions(Tensor(a!) positions, Tensor slots, Tensor(b!) after) -> ()"


def advance_positions(positions: Tensor, slots: Tensor, after: Tensor) -> None:
    """positions[slots] += 1, and after = positions[slots]; on a GPU in one kernel, elsewhere in plain torch.

    Args:
        positions: (S,) int64, changed in place.
        slots: (B,) int64, each in [0, S); what a slot gets that occurs several times is not defined.
        after: (B,) int64, which is written.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match.
    """
    if not positions.is_cuda:
        return advance_positions_reference(positions, slots, after)
    cpu_kernels.ensure_loaded()
    torch.ops.rwkv_engine.advance_positions(positions, slots, after)


def advance_positions_reference(positions: Tensor, slots: Tensor, after: Tensor) -> None:
    """`advance_positions` in plain torch."""
    positions.index_add_(0, slots, torch.ones_like(slots))
    torch.index_select(positions, 0, slots, out=after)


define(ADVANCE_POSITIONS_SCHEMA, advance_positions_reference, lambda positions, slots, after: None)
