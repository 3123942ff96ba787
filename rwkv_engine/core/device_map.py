"""On which device each layer of a model runs, and so where its state must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rwkv_engine.core.state import LayerState, State


@dataclass(frozen=True)
class DeviceMap:
    """A state is split and gathered field by field and device by device, not layer by layer: that takes fewer copies.

    Attributes:
        devices: of the layers, first layer first.
        home: of the head; whole states live there.
    """

    devices: tuple[torch.device, ...]
    home: torch.device

    @cached_property
    def indices(self) -> dict[torch.device, list[int]]:
        """The layers of each device."""
        return {
            device: [i for i, other in enumerate(self.devices) if other == device]
            for device in dict.fromkeys(self.devices)
        }

    def spread(self, state: State, copy: bool = False) -> dict[torch.device, State]:
        """For each device the state of its layers alone, there; `copy`: sharing no memory with `state`."""
        if len(self.indices) == 1:
            return {device: state.to(device, copy) for device in self.indices}
        layers = list(state.layers())
        return {
            device: State.from_layers([layers[i] for i in indices], state.position, state.fingerprint).to(device)
            for device, indices in self.indices.items()
        }

    def layers(self, parts: Mapping[torch.device, State]) -> list[LayerState]:
        """Views of the layers of what `spread` returned, first layer first."""
        views = {device: parts[device].layers() for device in self.indices}
        return [next(views[device]) for device in self.devices]

    def collect(self, layers: Sequence[LayerState], position: Tensor, fingerprint: str) -> State:
        """The whole state, from its layers."""
        parts = {
            device: State.from_layers([layers[i] for i in indices], position, fingerprint)
            for device, indices in self.indices.items()
        }
        return self.gather(parts, position, fingerprint)

    def gather(self, parts: Mapping[torch.device, State], position: Tensor, fingerprint: str) -> State:
        """The whole state, from the parts that `spread` returned; where it is whole already, the part itself."""
        parts = {device: part.to(self.home) for device, part in parts.items()}
        position = position.to(self.home)
        if len(parts) == 1:
            [whole] = parts.values()
            return replace(whole, position=position, fingerprint=fingerprint)
        return State.from_layers(self.layers(parts), position, fingerprint)
