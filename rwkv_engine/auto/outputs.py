"""What a call of a model returns: values by attribute, by name, or by place, as in transformers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor
from typing_extensions import Self

from rwkv_engine.core import State


class ModelOutput(OrderedDict[str, Any]):
    """`output.logits`, `output["logits"]`, `output[0]` and `output[:2]` where transformers has them.

    What was not asked for is None as an attribute, and is in neither the dictionary nor the tuple.
    """

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Without those that are None."""
        return cls((name, value) for name, value in values.items() if value is not None)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in _annotated(type(self)):
            return None
        raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(_annotated(type(self)))}")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values, without names."""
        return tuple(self.values())


class CausalLMOutput(ModelOutput):
    """Of `RwkvForCausalLM`.

    Attributes:
        loss: (), mean cross-entropy of the labels; with labels only.
        logits: (B, T, V) float32.
        state: after each sequence's last token; with `use_cache`, or where a state was given.
        hidden_states: L + 1 tensors (B, T, C), see `RwkvForCausalLM.forward`; with `output_hidden_states`.
    """

    loss: Tensor | None
    logits: Tensor
    state: State | None
    hidden_states: tuple[Tensor, ...] | None


class BaseOutput(ModelOutput):
    """Of `RwkvForCausalLM.rwkv`: the same, with the last LayerNorm's output in the place of logits."""

    last_hidden_state: Tensor
    state: State | None
    hidden_states: tuple[Tensor, ...] | None


def _annotated(kind: type) -> list[str]:
    return list(kind.__annotations__)
