"""What calls return, in transformers' own classes where it is installed and in small stand-ins where it is not."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self

from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError


class _ModelOutput(OrderedDict[str, Any]):
    """Values by attribute, by name or by index, like transformers' `ModelOutput`; those that are None have no index."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            if (value := getattr(self, field.name)) is not None:
                self[field.name] = value

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in order."""
        return tuple(self.values())


class _BatchEncoding(UserDict[str, Any]):
    """Lists or tensors by name or by attribute, like transformers' `BatchEncoding`."""

    def __getattr__(self, name: str) -> Any:
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(name)

    def to(self, device: str | int | torch.device, non_blocking: bool = False) -> Self:
        """Moves the tensors to a device, in place."""
        self.data = {
            name: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for name, value in self.data.items()
        }
        return self


ModelOutput: TypeAlias = _ModelOutput
Batch: TypeAlias = _BatchEncoding
if not TYPE_CHECKING:
    with suppress(ImportError):
        from transformers.tokenization_utils_base import BatchEncoding as Batch
        from transformers.utils import ModelOutput


@dataclass
class CausalLMOutput(ModelOutput):
    """Returned by `RwkvForCausalLM`. What was not asked for is None, and has no place in the tuple.

    Attributes:
        loss: (), float32, mean cross-entropy of the labels; only if labels were given.
        logits: (B, T, V), float32.
        state: the state after the last token of each sequence; with `use_cache`, or if a state was given.
        hidden_states: L + 1 tensors (B, T, C), see `RwkvForCausalLM.forward`; with `output_hidden_states`.
        attentions: always None.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: State | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: None = None


@dataclass
class BaseOutput(ModelOutput):
    """Returned by `RwkvForCausalLM.rwkv`: `last_hidden_state` (B, T, C) is the output of the last LayerNorm."""

    last_hidden_state: Tensor | None = None
    state: State | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: None = None


class Generated(NamedTuple):
    """Returned by `generate` with `return_dict_in_generate=True`.

    Attributes:
        sequences: int64 (R, T): the token ids that `generate` returns by default.
        state: of R sequences, each after its last token that is not padding; `generate(..., state=state)` continues it.
    """

    sequences: Tensor
    state: State


class BatchEncoding(Batch):
    """Returned by a tokenizer: `input_ids` and `attention_mask`; pass it on as `model.generate(**encoding)`."""

    def to(self, device: str | int | torch.device, non_blocking: bool = False) -> Self:
        """Moves the tensors to a device, in place.

        Args:
            device: a torch device or its name; an integer is the index of a CUDA device.
            non_blocking: as for `Tensor.to`.

        Raises:
            RequestError: the argument is not a device, or torch cannot use that device here.
        """
        if not isinstance(device, str | int | torch.device):
            raise RequestError(f"to: got {device!r}, expected a device; token ids stay integers")
        try:
            return super().to(device, non_blocking=non_blocking)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA raises an AssertionError
            first = str(error).splitlines()[0]
            raise RequestError(f"to: got {device!r}, which torch cannot use here: {first}") from error


def in_format(rows: Sequence[list[int]], kind: str | None, name: str) -> Any:
    """Converts rows of integers: kind "pt" gives an int64 tensor (B, T), "np" an int64 array, None the rows themselves.

    Raises:
        RequestError: an unknown kind, or rows of different lengths where a tensor is asked for.
    """
    if kind is None:
        return rows
    if kind not in ("pt", "np"):
        raise RequestError(f"return_tensors: got {kind!r}, expected 'pt' (torch), 'np' (NumPy) or None (lists)")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise RequestError(
            f"{name}: got texts of {min(lengths)} to {max(lengths)} tokens, but a tensor needs rows of equal length;"
            " pass padding=True, or truncation=True with a max_length"
        )
    tensor = torch.tensor(rows, dtype=torch.int64).view(len(rows), *lengths)
    return tensor if kind == "pt" else tensor.numpy()
