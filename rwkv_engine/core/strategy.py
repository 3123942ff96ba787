"""Where each layer runs and in what precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.errors import StrategyError


@dataclass(frozen=True)
class Placement:
    """Of one layer: its device and the dtype of its weights and activations."""

    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Strategy:
    """What the user wrote, parsed. It does not know how many layers there are until `place`."""

    text: str
    placement: Placement

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Parses a strategy string; this version runs `cpu fp32`.

        Raises:
            StrategyError: anything else.
        """
        if text.split() != ["cpu", "fp32"]:
            raise StrategyError(f"strategy {text!r}: this version runs 'cpu fp32' only")
        return cls("cpu fp32", Placement(torch.device("cpu"), torch.float32))

    def place(self, config: ModelConfig) -> tuple[Placement, ...]:
        """One placement for each layer and a last one for the output LayerNorm and the head."""
        return (self.placement,) * (config.n_layer + 1)
