"""A pool of states at fixed addresses, as CUDA graphs need them."""

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
    """The states of S sequences. A sequence has one slot, which is the index of its row in every tensor.

    Attributes:
        index: converts slots to an index tensor on a device; cached.
        layers: the states of all layers, first layer first, each on its layer's device: views (S, ...).
        positions: (S,) int64 on the head's device, the number of tokens processed in each slot.
        dummy: the last slot, which `take` never returns; the padding rows of a batch use it.
    """

    def __init__(self, model: Model, slots: int):
        """Allocates a pool for up to `slots` sequences at a time, and the dummy slot."""
        self._config, self._fingerprint, self._device_map = model.config, model.fingerprint, model.device_map
        self._parts = self._device_map.spread(State.initial(self._config, slots + 1), copy=True)
        self.layers = self._device_map.layers(self._parts)
        self.positions = torch.zeros(slots + 1, dtype=torch.int64, device=self._device_map.home)
        self.dummy = slots
        self._free = list(range(slots))
        # Copying even a few numbers to a GPU takes as long as launching several kernels.
        self.index: Callable[[tuple[int, ...], torch.device], Tensor] = lru_cache(maxsize=64)(_index)

    @property
    def n_free(self) -> int:
        """The number of slots that are not in use."""
        return len(self._free)

    def take(self, state: State) -> list[int]:
        """Allocates a slot for each sequence of a state, and copies the state there.

        Raises:
            RequestError: there are too few free slots, or the state belongs to another model.
        """
        if state.batch > len(self._free):
            raise RequestError(
                f"state: needs {state.batch} slots of the pool, but {len(self._free)} of {self.dummy} are free"
            )
        slots = self._free[: state.batch]
        self.load(slots, state)
        del self._free[: state.batch]
        return slots

    def free(self, slots: Sequence[int]) -> None:
        """Returns slots to the pool."""
        self._free.extend(slots)

    def load(self, slots: Sequence[int], state: State) -> None:
        """Copies a state into slots, one for each of its sequences.

        Raises:
            RequestError: the state belongs to another model, or has another number of sequences.
        """
        state.check(self._config, self._fingerprint, len(slots))
        for device, part in self._device_map.spread(state).items():
            rows = self.index(tuple(slots), device)
            for name, field in self._parts[device].fields.items():
                field.index_copy_(0, rows, part.fields[name])
        home = self.positions.device
        self.positions.index_copy_(0, self.index(tuple(slots), home), state.position.to(home))

    def read(self, slots: Sequence[int]) -> State:
        """A copy of the states in these slots, on the head's device."""
        parts = {}
        for device, part in self._parts.items():
            rows = self.index(tuple(slots), device)
            fields = {name: field.index_select(0, rows) for name, field in part.fields.items()}
            parts[device] = replace(part, fields=fields)
        position = self.positions.index_select(0, self.index(tuple(slots), self.positions.device))
        return self._device_map.gather(parts, position, self._fingerprint)

    def reserve(self, n: int) -> list[int]:
        """Allocates `n` slots, or as many as are free, whose states are not defined."""
        slots = self._free[:n]
        del self._free[:n]
        return slots

    def advance(self, slots: Tensor, before: Tensor | None = None) -> Tensor:
        """Increments the positions of `slots`, (B,) int64 on the head's device, and returns the new ones (B,).

        With `before`, (B,) int64, each slot in turn gets one more than the position of the slot it begins from.
        """
        if before is not None:
            positions = self.positions.tolist()
            for slot, origin in zip(slots.tolist(), before.tolist(), strict=True):
                positions[slot] = positions[origin] + 1
            self.positions.copy_(torch.tensor(positions))
            return self.positions.index_select(0, slots)
        self.positions.index_add_(0, slots, torch.ones_like(slots))
        return self.positions.index_select(0, slots)


def _index(slots: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(slots, dtype=torch.int64, device=device)
