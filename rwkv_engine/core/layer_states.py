"""The states of all layers of one device, as one tensor of each field."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import overload

from rwkv_engine.core.state import LayerState, State


class LayerStates(Sequence[LayerState]):
    """The states of layers, first layer first.

    Those of single layers are views that are made when one is asked for: dozens of tensors cost a small model some
    percent of the time of a token, and the kernel that runs all layers needs the whole fields only.

    Attributes:
        whole: the state whose tensors the views share.
    """

    def __init__(self, whole: State):
        self.whole = whole

    def __len__(self) -> int:
        return next(iter(self.whole.fields.values())).shape[1]

    @overload
    def __getitem__(self, which: int) -> LayerState: ...
    @overload
    def __getitem__(self, which: slice) -> Sequence[LayerState]: ...
    def __getitem__(self, which: int | slice) -> LayerState | Sequence[LayerState]:
        """The state of one layer, or those of some; all of them are these states again."""
        if isinstance(which, slice) and which.indices(len(self)) == (0, len(self), 1):
            return self
        return self._views[which]

    @cached_property
    def _views(self) -> list[LayerState]:
        return list(self.whole.layers())
