"""The plan of every tensor of a model: its device, number format and memory layout (form)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwkv_engine.core.config import ModelConfig, TensorSpec
from rwkv_engine.core.placement import Placement
from rwkv_engine.core.streaming import is_streamed
from rwkv_engine.core.weight_format import WeightFormat
from rwkv_engine.models.arrange import arranged_shape, form_of


@dataclass(frozen=True)
class TensorPlan:
    """The plan of one tensor.

    Attributes:
        spec: the tensor in the checkpoint.
        weights: its number format.
        form: its memory layout, see `models.arrange`.
        device: the device's name in torch.
        streamed: whether it stays in main memory, and is copied to the device for each forward pass.
    """

    spec: TensorSpec
    weights: WeightFormat
    form: str
    device: str
    streamed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor in its form."""
        return arranged_shape(self.form, self.spec.shape, self.weights)

    @property
    def nbytes(self) -> int:
        """Bytes with scales, without the padding of a matrix to full tiles."""
        return self.weights.nbytes(self.spec.shape)


def plan_tensors(config: ModelConfig, placements: Sequence[Placement]) -> dict[str, TensorPlan]:
    """The plan of every tensor by its original name, in the order of `ModelConfig.tensors`.

    Args:
        config: the model's sizes.
        placements: one for each layer and a last one for the head, as `Strategy.place` returns them.
    """
    plans = {}
    for name, spec in config.tensors().items():
        placement = placements[spec.layer]
        form, streamed = form_of(spec.role), is_streamed(spec, placement, config)
        plans[name] = TensorPlan(spec, placement.format_of(spec.role), form, placement.device, streamed)
    return plans
