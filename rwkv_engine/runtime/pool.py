"""States of many sequences at addresses that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.models import Model


class StatePool:
    """One state of S sequences on each device of a model, with the layers of that device; a sequence has a slot in all.

    Attributes:
        index: slots as a tensor on a device.
        layers: the states of all layers, first layer first: views (S, ...), rows one slot apart.
        positions: (S,) int64 on the head's device, tokens read in each slot.
        dummy: the last slot, never handed out: rows that fill up a batch work on it.
    """

    def __init__(self, model: Model, slots: int):
        """`slots`: sequences at a time."""
        self._config, self._fingerprint, self._device_map = model.config, model.fingerprint, model.device_map
        self._parts = self._device_map.spread(State.initial(self._config, slots + 1), copy=True)
        self.layers = self._device_map.layers(self._parts)
        self.positions = torch.zeros(slots + 1, dtype=torch.int64, device=self._device_map.home)
        self.dummy = slots
        self._free = list(range(slots))
        # Copying a handful of numbers to a GPU takes as long as launching several kernels.
        self.index: Callable[[tuple[int, ...], torch.device], Tensor] = lru_cache(maxsize=64)(_index)

    def take(self, state: State) -> list[int]:
        """Slots for the sequences of a state, holding it.

        Raises:
            RequestError: there are not so many free ones, or it is a state of another model.
        """
        if state.batch > len(self._free):
            raise RequestError(f"{state.batch} slots for states asked for, {len(self._free)} of {self.dummy} are free")
        slots = self._free[: state.batch]
        self.load(slots, state)
        del self._free[: state.batch]
        return slots

    def free(self, slots: Sequence[int]) -> None:
        """Gives slots back."""
        self._free.extend(slots)

    def load(self, slots: Sequence[int], state: State) -> None:
        """Replaces what is in slots.

        Raises:
            RequestError: it is a state of another model, or not of as many sequences.
        """
        state.check(self._config, self._fingerprint, len(slots))
        for device, part in self._device_map.spread(state).items():
            rows = self.index(tuple(slots), device)
            for name, field in self._parts[device].fields.items():
                field.index_copy_(0, rows, part.fields[name])
        home = self.positions.device
        self.positions.index_copy_(0, self.index(tuple(slots), home), state.position.to(home))

    def read(self, slots: Sequence[int]) -> State:
        """What is in slots, as a value."""
        parts = {}
        for device, part in self._parts.items():
            rows = self.index(tuple(slots), device)
            fields = {name: field.index_select(0, rows) for name, field in part.fields.items()}
            parts[device] = replace(part, fields=fields)
        position = self.positions.index_select(0, self.index(tuple(slots), self.positions.device))
        return self._device_map.gather(parts, position, self._fingerprint)

    def advance(self, slots: Tensor) -> Tensor:
        """Counts one token more in each slot, (B,) int64 on the head's device; returns their positions (B,)."""
        self.positions.index_add_(0, slots, torch.ones_like(slots))
        return self.positions.index_select(0, slots)


def _index(slots: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(slots, dtype=torch.int64, device=device)
