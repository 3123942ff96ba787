"""The recurrent state of a batch of sequences: everything that a model keeps between tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rwkv_engine.checks import require, require_text, shown
from rwkv_engine.core.config import ModelConfig
from rwkv_engine.errors import RequestError
from rwkv_engine.storage.atomic import replace_atomically

FORMAT = "rwkv_engine.state.1"
# The state of one layer for B sequences: each field by its name, float32 (B, *shape), on the layer's device.
LayerState = Mapping[str, Tensor]


@dataclass(frozen=True)
class State:
    """The recurrent state of B sequences after a number of tokens.

    A field is also an attribute: `state.att_shift` is `state.fields["att_shift"]`. All tensors are on one device; a
    model accepts states on any device, and returns them on the device of its head.

    Attributes:
        fields: each field by its name, float32 (B, L, *shape), as `ModelConfig.state_fields` describes it.
        position: (B,) int64, the number of tokens processed so far.
        fingerprint: the fingerprint of the model that computed the state; other models refuse it. It is empty in an
            initial state.
    """

    fields: Mapping[str, Tensor]
    position: Tensor
    fingerprint: str = ""

    def __getattr__(self, name: str) -> Tensor:
        if name != "fields" and name in self.fields:  # `fields` itself is missing while a copy is being made
            return self.fields[name]
        raise AttributeError(f"a state has no {name!r}")

    @classmethod
    def initial(cls, config: ModelConfig, batch: int = 1) -> State:
        """The state before the first token of `batch` sequences, on the CPU.

        Raises:
            RequestError: `batch` is not an integer >= 0.
        """
        require("batch", batch, int, lambda n: n >= 0, "an integer >= 0")
        fields = {
            field.name: torch.full((batch, config.n_layer, *field.shape), field.empty, dtype=torch.float32)
            for field in config.state_fields()
        }
        return cls(fields, torch.zeros(batch, dtype=torch.int64))

    @classmethod
    def from_layers(cls, layers: Sequence[LayerState], position: Tensor, fingerprint: str) -> State:
        """Stacks the states of all layers, given first layer first, which must be on one device."""
        fields = {name: torch.stack([layer[name] for layer in layers], dim=1) for name in layers[0]}
        return cls(fields, position, fingerprint)

    def layers(self) -> Iterator[LayerState]:
        """Views of the layers, first layer first."""
        for tensors in zip(*(field.unbind(1) for field in self.fields.values()), strict=True):
            yield dict(zip(self.fields, tensors, strict=True))

    @property
    def batch(self) -> int:
        """Number of sequences, B."""
        return next(iter(self.fields.values())).shape[0]

    def rows(self, which: Tensor | slice) -> State:
        """The state of some of the sequences, selected by indices (N,), a boolean mask (B,) or a slice.

        With a slice the result is a view.

        Raises:
            RequestError: an index is outside the batch, or `which` is none of these.
        """
        try:
            return self._mapped(lambda tensor: tensor[which])
        except (IndexError, TypeError) as error:
            raise RequestError(f"which: got {shown(which)}, expected some of {self.batch} texts: {error}") from error

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """Concatenates the sequences of several states into one batch. All states must be on one device.

        Raises:
            RequestError: there are no states, or they belong to different models.
        """
        if not states or not all(isinstance(state, State) for state in states):
            raise RequestError(f"states: got {shown(states)}, expected at least one State, and nothing else")
        known = sorted({state.fingerprint for state in states} - {""})
        if len(known) > 1:
            raise RequestError(f"states of {len(known)} models cannot be joined: fingerprints {', '.join(known)}")
        fields = {name: torch.cat([state.fields[name] for state in states]) for name in states[0].fields}
        return State(fields, torch.cat([state.position for state in states]), "".join(known))

    def clone(self) -> State:
        """A copy that shares no memory with this one."""
        return self._mapped(Tensor.clone)

    def to(self, device: torch.device | str, copy: bool = False) -> State:
        """The state on a device. It may share memory with this one, unless `copy` is true."""
        return self._mapped(lambda tensor: tensor.to(device, copy=copy))

    def detach(self) -> State:
        """The same state without its autograd graph, for truncated backpropagation through time."""
        return self._mapped(Tensor.detach)

    def save(self, path: str | Path, about: Mapping[str, str] | None = None) -> None:
        """Writes a safetensors file, completely or not at all.

        Args:
            path: the file; a regular file of that name is replaced.
            about: text to store with the state, such as its prompt; `State.about` returns it.

        Raises:
            RequestError: the file cannot be written; `path` is a directory, a device, a pipe or a socket; or a key or
                value of `about` is not text.
        """
        _require_path(path)
        require("about", about, (Mapping, type(None)), lambda _: True, "a dictionary of texts, or None")
        for name, text in (about or {}).items():
            require_text("about", name)
            require_text(f"about[{name!r}]", text)
        tensors = {name: t.detach().contiguous() for name, t in {**self.fields, "position": self.position}.items()}
        metadata = {**(about or {}), "format": FORMAT, "fingerprint": self.fingerprint}
        try:
            with replace_atomically(Path(path)) as temporary:
                save_file(tensors, temporary, metadata=metadata)
        except (OSError, SafetensorError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise RequestError(f"{path}: the state cannot be written: {reason}") from error

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Reads a file that `save` wrote. The model checks whether the state fits when it uses it.

        Raises:
            RequestError: the file cannot be read or does not contain a state.
        """
        with _opened(path) as (file, metadata):
            position = file.get_tensor("position").clone()
            names = sorted(set(file.keys()) - {"position"})
            fields = {name: file.get_tensor(name).clone() for name in names}
        return cls(fields, position, metadata.get("fingerprint", ""))

    @staticmethod
    def about(path: str | Path) -> dict[str, str]:
        """The argument `about` of the `save` that wrote this file.

        Raises:
            RequestError: the file cannot be read or does not contain a state.
        """
        with _opened(path) as (_, metadata):
            return {name: text for name, text in metadata.items() if name not in ("format", "fingerprint")}

    def check(self, config: ModelConfig, fingerprint: str, batch: int) -> None:
        """Refuses a state of another model or another batch size.

        Raises:
            RequestError: the message names the difference.
        """
        if self.fingerprint not in ("", fingerprint):
            raise RequestError(
                f"this state belongs to another model (fingerprint {self.fingerprint}, this model's is"
                f" {fingerprint or 'empty'}); start from None, or load the model the state came from"
            )
        if self.batch != batch:
            raise RequestError(f"state of {self.batch} sequences given for a batch of {batch}")
        if self.position.shape != (batch,) or self.position.dtype != torch.int64:
            raise RequestError(f"state.position: got {self.position!r}, expected {batch} integers (int64)")
        expected = {field.name: (batch, config.n_layer, *field.shape) for field in config.state_fields()}
        if expected.keys() != self.fields.keys():
            raise RequestError(
                f"this state belongs to another RWKV version: got the fields {', '.join(sorted(self.fields))}, expected"
                f" {', '.join(sorted(expected))}; start from None, or load the model the state came from"
            )
        for name, shape in expected.items():
            tensor = self.fields[name]
            if tensor.shape != shape or tensor.dtype != torch.float32:
                raise RequestError(f"state.{name}: got {tensor.dtype} {tuple(tensor.shape)}, expected float32 {shape}")

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> State:
        """The state after applying a function to every tensor."""
        fields = {name: function(tensor) for name, tensor in self.fields.items()}
        return State(fields, function(self.position), self.fingerprint)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Opens the file of a saved state; yields it with its metadata."""
    _require_path(path)
    if Path(path).exists() and not Path(path).is_file():  # a named pipe would be waited for
        raise RequestError(f"{path}: is not a regular file, expected a saved state")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = metadata.get("format", "no format tag")
                raise RequestError(f"{path}: expected a saved state ({FORMAT}), got {found}")
            yield file, metadata
    except (OSError, SafetensorError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        if isinstance(error, SafetensorError):
            reason += "; expected a file that State.save wrote"
        raise RequestError(f"{path}: no saved state can be read here: {reason}") from error


def _require_path(path: Any) -> None:
    require("path", path, (str, PathLike), lambda _: True, "the name of a file")
