"""All that a model remembers between tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rwkv_engine.checks import require_text
from rwkv_engine.core.config import ModelConfig
from rwkv_engine.errors import RequestError
from rwkv_engine.storage.atomic import replace_atomically

# The first token's own weight is e^(u+k) against e^max: with -1e30 the empty past counts for exactly nothing.
EMPTY_MAX = -1e30
FORMAT = "rwkv_engine.state.1"


@dataclass(frozen=True)
class LayerState:
    """The state of one layer, float32: `*_shift` (B, C), `wkv_*` (B, A)."""

    att_shift: Tensor
    ffn_shift: Tensor
    wkv_num: Tensor
    wkv_den: Tensor
    wkv_max: Tensor


FIELDS = tuple(LayerState.__dataclass_fields__)


@dataclass(frozen=True)
class State:
    """What B sequences remember, float32, by name.

    Attributes:
        att_shift, ffn_shift: (B, L, C), the normalised input of time and channel mixing at the last token.
        wkv_num, wkv_den, wkv_max: (B, L, A), the recurrence, see `ops.wkv4`.
        position: (B,) int64, the number of tokens read so far.
            All on one device; a model takes it from any and returns it on that of its head.
        fingerprint: of the model that made it, refused by another model; empty while no model has written to it.
    """

    att_shift: Tensor
    ffn_shift: Tensor
    wkv_num: Tensor
    wkv_den: Tensor
    wkv_max: Tensor
    position: Tensor
    fingerprint: str = ""

    @classmethod
    def initial(cls, config: ModelConfig, batch: int = 1) -> State:
        """The state before the first token."""
        shift = torch.zeros(batch, config.n_layer, config.n_embd)
        wkv = torch.zeros(batch, config.n_layer, config.n_att)
        position = torch.zeros(batch, dtype=torch.int64)
        return cls(shift, shift.clone(), wkv, wkv.clone(), torch.full_like(wkv, EMPTY_MAX), position)

    @classmethod
    def from_layers(cls, layers: list[LayerState], position: Tensor, fingerprint: str) -> State:
        """Gathers the states of all layers, first layer first."""
        tensors = {name: torch.stack([getattr(layer, name) for layer in layers], dim=1) for name in FIELDS}
        return cls(**tensors, position=position, fingerprint=fingerprint)

    def layers(self) -> Iterator[LayerState]:
        """Views of the layers, first layer first."""
        for i in range(self.att_shift.shape[1]):
            yield LayerState(**{name: getattr(self, name)[:, i] for name in FIELDS})

    @property
    def batch(self) -> int:
        """Number of sequences, B."""
        return self.att_shift.shape[0]

    def rows(self, which: Tensor | slice) -> State:
        """Those of some of the sequences: indices (N,), a mask (B,) or a slice, as tensors take them."""
        return State(**{k: t[which] for k, t in self._tensors().items()}, fingerprint=self.fingerprint)

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """The sequences of several states, on one device, as one batch.

        Raises:
            RequestError: they are of different models.
        """
        known = sorted({state.fingerprint for state in states} - {""})
        if len(known) > 1:
            raise RequestError(f"states of {len(known)} models cannot be joined: fingerprints {', '.join(known)}")
        tensors = [state._tensors() for state in states]
        joined = {name: torch.cat([t[name] for t in tensors]) for name in tensors[0]}
        return State(**joined, fingerprint="".join(known))

    def clone(self) -> State:
        """A copy that shares no memory with this one."""
        return State(**{k: t.clone() for k, t in self._tensors().items()}, fingerprint=self.fingerprint)

    def to(self, device: torch.device | str, copy: bool = False) -> State:
        """The same on a device; with `copy` it shares no memory with this one, wherever this one is."""
        return State(**{k: t.to(device, copy=copy) for k, t in self._tensors().items()}, fingerprint=self.fingerprint)

    def detach(self) -> State:
        """The same numbers, cut off from autograd: the step of truncated backpropagation through time."""
        return State(**{k: t.detach() for k, t in self._tensors().items()}, fingerprint=self.fingerprint)

    def save(self, path: str | Path, about: Mapping[str, str] | None = None) -> None:
        """Writes a safetensors file, whole or not at all.

        Args:
            path: of the file.
            about: what to remember beside the state, such as the text it comes from; `State.about` reads it.

        Raises:
            RequestError: it cannot be written there, or `about` holds anything but text.
        """
        for name, text in (about or {}).items():
            require_text("about", name)
            require_text(f"about[{name!r}]", text)
        tensors = {name: t.detach().contiguous() for name, t in self._tensors().items()}
        metadata = {**(about or {}), "format": FORMAT, "fingerprint": self.fingerprint}
        try:
            with replace_atomically(Path(path)) as temporary:
                save_file(tensors, temporary, metadata=metadata)
        except (OSError, SafetensorError) as error:
            raise RequestError(f"{path}: the state cannot be written here: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Reads what `save` wrote. Whether it fits a model is checked when the model is given it.

        Raises:
            RequestError: the file cannot be read or holds no state.
        """
        with _opened(path) as (file, metadata):
            tensors = {name: file.get_tensor(name).clone() for name in (*FIELDS, "position")}
        return cls(**tensors, fingerprint=metadata.get("fingerprint", ""))

    @staticmethod
    def about(path: str | Path) -> dict[str, str]:
        """What `save` was given to remember beside the state.

        Raises:
            RequestError: the file cannot be read or holds no state.
        """
        with _opened(path) as (_, metadata):
            return {name: text for name, text in metadata.items() if name not in ("format", "fingerprint")}

    def check(self, config: ModelConfig, fingerprint: str, batch: int) -> None:
        """Refuses a state of another model or another batch size.

        Raises:
            RequestError: with what differs.
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
        for name in FIELDS:
            width = config.n_embd if name.endswith("shift") else config.n_att
            tensor = getattr(self, name)
            if tensor.shape != (batch, config.n_layer, width) or tensor.dtype != torch.float32:
                raise RequestError(
                    f"state.{name}: got {tensor.dtype} {tuple(tensor.shape)},"
                    f" expected float32 {(batch, config.n_layer, width)}"
                )

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in (*FIELDS, "position")}


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A saved state's file and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = metadata.get("format", "no format tag")
                raise RequestError(f"{path}: expected a saved state ({FORMAT}), got {found}")
            yield file, metadata
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{path}: no saved state can be read here: {error}") from error
