"""Reads and replaces the rows of a state that a batch uses: all of them in order, or those in `slots`."""

from __future__ import annotations

from torch import Tensor


def rows_of(state: Tensor, slots: Tensor | None) -> Tensor:
    """The state's row for each row of the batch: (S, ...) -> (B, ...)."""
    return state if slots is None else state.index_select(0, slots)


def replace_rows(state: Tensor, slots: Tensor | None, new: Tensor) -> None:
    """Replaces the rows that `rows_of` reads. If several rows of the batch share a slot, one of them is written."""
    if slots is None:
        state.copy_(new)
    else:
        state.index_copy_(0, slots, new)
