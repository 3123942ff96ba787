"""The device of each layer of a model, and of the layer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rwkv_engine.core.layer_states import LayerStates
from rwkv_engine.core.state import LayerState, State


@dataclass(frozen=True)
class DeviceMap:
    """Splits states among the devices of a model's layers, and gathers them again.

    Each field is copied once per device, not once per layer.

    Attributes:
        devices: the device of each layer, first layer first.
        home: the device of the head, on which complete states are returned.
        alone: the layers that are runs of their own, because something happens between them and their neighbours.
    """

    devices: tuple[torch.device, ...]
    home: torch.device
    alone: frozenset[int] = frozenset()

    @cached_property
    def indices(self) -> dict[torch.device, list[int]]:
        """The indices of the layers on each device."""
        return {
            device: [i for i, other in enumerate(self.devices) if other == device]
            for device in dict.fromkeys(self.devices)
        }

    @cached_property
    def runs(self) -> list[tuple[torch.device, slice]]:
        """The slices of consecutive layers on the same device that are not `alone`, first layer first."""
        n = len(self.devices)
        starts = [i for i in range(n) if i == 0 or self.devices[i] != self.devices[i - 1] or {i, i - 1} & self.alone]
        return [(self.devices[a], slice(a, b)) for a, b in zip(starts, [*starts[1:], len(self.devices)], strict=True)]

    def spread(self, state: State, copy: bool = False) -> dict[torch.device, State]:
        """For each device, the state of that device's layers, on that device.

        With `copy` the parts share no memory with `state`.
        """
        if len(self.indices) == 1:
            return {device: state.to(device, copy) for device in self.indices}
        layers = list(state.layers())
        return {
            device: State.from_layers([layers[i] for i in indices], state.position, state.fingerprint).to(device)
            for device, indices in self.indices.items()
        }

    def layers(self, parts: Mapping[torch.device, State]) -> Sequence[LayerState]:
        """Views of each layer's state in the parts that `spread` returned, first layer first."""
        if len(self.indices) == 1:
            return LayerStates(next(iter(parts.values())))
        views = {device: parts[device].layers() for device in self.indices}
        return [next(views[device]) for device in self.devices]

    def collect(self, layers: Sequence[LayerState], position: Tensor, fingerprint: str) -> State:
        """The complete state on the home device, from the states of its layers."""
        parts = {
            device: State.from_layers([layers[i] for i in indices], position, fingerprint)
            for device, indices in self.indices.items()
        }
        return self.gather(parts, position, fingerprint)

    def gather(self, parts: Mapping[torch.device, State], position: Tensor, fingerprint: str) -> State:
        """The complete state on the home device, from the parts that `spread` returned.

        A single part is returned without a copy, if it is on the home device.
        """
        if parts.keys() == {self.home}:  # no tensor needs to be asked for its device
            return State(parts[self.home].fields, position.to(self.home), fingerprint)
        parts = {device: part.to(self.home) for device, part in parts.items()}
        position = position.to(self.home)
        if len(parts) == 1:
            [whole] = parts.values()
            return replace(whole, position=position, fingerprint=fingerprint)
        return State.from_layers(self.layers(parts), position, fingerprint)
