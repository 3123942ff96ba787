"""What all RWKV versions share: an embedding, layers that carry a state, an output LayerNorm and a head.

Modules carry the tensor names of the original checkpoints (`blocks.0.att.time_decay`, ...), so a state dict is a
checkpoint, unless matrices are packed for the kernels (`weights.Tiled`). Only matrices, low-rank factors and the
embedding may be stored in half precision: residual stream, LayerNorm, recurrence and state are float32 in every
strategy.

Shapes: B sequences, T tokens, C = n_embd, V = n_vocab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.device_map import DeviceMap
from rwkv_engine.core.state import LayerState, State
from rwkv_engine.models.weights import Dense, InputMajor, Tiled
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.ops.slots import replace_rows, rows_of


class Block(nn.Module):
    """One layer. Block 0 also owns ln0, which normalises the embedding.

    A version subclasses it, calls `__init__` with its config and the layer's index, and implements `forward`. A fused
    `step` for packed weights is worth adding.

    Attributes:
        watched: the modules whose outputs `verify` reports besides the residual stream, by their names in the report.
    """

    watched: ClassVar[Mapping[str, str]] = {}
    ln0: nn.LayerNorm

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        self.index = index
        if index == 0:
            self.ln0 = float32_norm(config.n_embd, config.layer_norm_eps)
        self.ln1 = float32_norm(config.n_embd, config.layer_norm_eps)
        self.ln2 = float32_norm(config.n_embd, config.layer_norm_eps)

    def forward(
        self, x: Tensor, state: LayerState, first: Tensor | None = None
    ) -> tuple[Tensor, LayerState, Tensor | None]:
        """Many tokens, with gradients where autograd is on.

        Args:
            x: the residual stream, (B, T, C) float32.
            state: of this layer; not modified.
            first: what layer 0 handed on, (B, T, ...), on this layer's device; None in layer 0, and in versions whose
                layer 0 hands nothing on.

        Returns:
            The residual stream (B, T, C), the new state, and `first` for the layers after this one.
        """
        raise NotImplementedError("a version of RWKV implements this")

    def step(
        self, x: Tensor, state: LayerState, slots: Tensor | None, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """One token of each of B sequences, without gradients.

        Args:
            x: the residual stream, (B, C) float32.
            state: (S, ...) of this layer; the rows `slots` are replaced in place.
            slots: (B,) int64 on this layer's device, see `ops.TimeMixing4Step`; None: S = B, in the same order.
            first: as for `forward`, (B, ...).

        Returns:
            The residual stream (B, C), and `first` for the layers after this one.
        """
        before = {name: rows_of(field, slots) for name, field in state.items()}
        y, after, handed_on = self(x.unsqueeze(1), before, None if first is None else first.unsqueeze(1))
        for name, field in state.items():
            replace_rows(field, slots, after[name])
        return y.squeeze(1), None if handed_on is None else handed_on.squeeze(1)

    @property
    def is_packed(self) -> bool:
        """Whether its matrices are in the forms that the kernels of `step` read."""
        return any(isinstance(module, Tiled | InputMajor) for module in self.modules())

    @property
    def device(self) -> torch.device:
        """Where this layer runs."""
        return self.ln1.weight.device

    def forget(self) -> None:
        """Drops what was computed from parameters, which have been replaced or moved."""


class Model(nn.Module):
    """Token ids and a state in, logits and a new state out.

    Layers may be on several devices. The residual stream goes from one to the next; ids and states are taken from any
    device; logits and new states are on the head's, which is where a token is sampled.

    Attributes:
        block: the class of the version's layers.
        config: the model's sizes.
        fingerprint: identifies the weights; states carry it.
    """

    block: ClassVar[type[Block]]

    def __init__(self, config: ModelConfig, fingerprint: str = ""):
        super().__init__()
        self.config = config
        self.fingerprint = fingerprint
        # Its own random numbers would, on the meta device, import torch's compiler: a second and 70 MB.
        table = torch.empty(config.n_vocab, config.n_embd, dtype=torch.float32)
        self.emb = nn.Embedding.from_pretrained(table, freeze=False)
        self.blocks = nn.ModuleList(self.block(config, i) for i in range(config.n_layer))
        self.ln_out = float32_norm(config.n_embd)
        self.head = Dense(config.n_embd, config.n_vocab)

    @property
    def layers(self) -> list[Block]:
        """The blocks, first layer first."""
        return cast("list[Block]", list(self.blocks))

    @cached_property
    def device_map(self) -> DeviceMap:
        """Where the layers are; they stay there once the model has run, until `forget` is called."""
        return DeviceMap(tuple(block.device for block in self.layers), self.ln_out.weight.device)

    def forget(self) -> None:
        """Drops what was computed from parameters; to be called when parameters have been replaced or moved."""
        self.__dict__.pop("device_map", None)
        for block in self.layers:
            block.forget()

    @staticmethod
    def are_few(tokens: Tensor) -> bool:
        """Whether tokens (B, T) are few enough to be read by `step`. This is the one place that decides it."""
        return tokens.shape[1] == 1 and len(tokens) <= MOST_ROWS

    def forward(self, tokens: Tensor, state: State, full_output: bool = False) -> tuple[Tensor, State]:
        """Reads T tokens of each of B sequences.

        Args:
            tokens: (B, T) int64, T >= 1, each in [0, V).
            state: of the same B sequences; not modified.
            full_output: logits for every token instead of the last one.

        Returns:
            Logits (B, V), or (B, T, V) with `full_output`; and the state after the last token.
        """
        if self.are_few(tokens) and self.layers[0].is_packed:
            parts = self.device_map.spread(state, copy=True)
            logits = self.step(tokens.squeeze(1), self.device_map.layers(parts))
            state = self.device_map.gather(parts, state.position + 1, self.fingerprint)
            return (logits.unsqueeze(1) if full_output else logits), state
        x, state = self.read(tokens, state)
        return self.head(self.ln_out(x if full_output else x[:, -1])), state

    def read(self, tokens: Tensor, state: State, after: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """The same up to the last LayerNorm, which is `ln_out`.

        Args:
            tokens: (B, T) int64, T >= 1, each in [0, V).
            state: of the same B sequences; not modified.
            after: the residual stream after each layer is appended, (B, T, C), where the layer is.

        Returns:
            The residual stream after the last layer, (B, T, C), on the head's device; and the new state.
        """
        x, first = self._embed(tokens), None
        layers = []
        before = self.device_map.layers(self.device_map.spread(state))
        for block, device, layer in zip(self.layers, self.device_map.devices, before, strict=True):
            x, first = x.to(device), None if first is None else first.to(device)
            x, new_layer, first = block(x, layer, first)
            layers.append({name: new_layer[name] for name in layer})  # fields keep their order
            if after is not None:
                after.append(x)
        position = state.position + tokens.shape[1]
        return x.to(self.device_map.home), self.device_map.collect(layers, position, self.fingerprint)

    def step(self, tokens: Tensor, layers: Sequence[LayerState], slots: Tensor | None = None) -> Tensor:
        """Reads one token of each of B sequences.

        Args:
            tokens: (B,) int64, each in [0, V).
            layers: the states of all layers, each on its layer's device; replaced in place.
            slots: (B,) int64, which of the states' rows are those of the B sequences, see `ops.TimeMixing4Step`; None
                where they have B rows in the same order.

        Returns:
            Logits (B, V).
        """
        x, first = self._embed(tokens), None
        for block, device, layer in zip(self.layers, self.device_map.devices, layers, strict=True):
            if x.device != device:
                x, first = x.to(device), None if first is None else first.to(device)
                slots = None if slots is None else slots.to(device)
            x, first = block.step(x, layer, slots, first)
        return self.head(self.ln_out(x.to(self.device_map.home)))

    def _embed(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., C), normalised: the table stays as it is in the file."""
        norm = self.layers[0].ln0
        return norm(self.emb(tokens.to(self.emb.weight.device)).to(norm.weight.dtype))


def float32_norm(width: int, eps: float = 1e-5) -> nn.LayerNorm:
    """A LayerNorm whose parameters are float32 whatever torch's default dtype is."""
    return nn.LayerNorm(width, eps, dtype=torch.float32)


def float32_parameter(*shape: int) -> nn.Parameter:
    """A float32 parameter without values: loading a checkpoint replaces it."""
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32))
