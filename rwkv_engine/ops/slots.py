"""The rows of a state that a batch uses: all in order, or those in `slots`."""

from __future__ import annotations

from torch import Tensor


def rows_of(state: Tensor, slots: Tensor | None) -> Tensor:
    """The row of each row of the batch, (S, width) -> (B, width)."""
    return state if slots is None else state.index_select(0, slots)


def replace_rows(state: Tensor, slots: Tensor | None, new: Tensor) -> None:
    """Writes the rows that `rows_of` read; where several share one, any of them."""
    if slots is None:
        state.copy_(new)
    else:
        state.index_copy_(0, slots, new)
