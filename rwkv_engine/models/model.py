"""The structure that all RWKV versions share: an embedding, layers with a state, an output LayerNorm and a head.

Modules have the tensor names of the original checkpoints (`blocks.0.att.time_decay`, ...), so a state dict is a
checkpoint, unless matrices are packed for the kernels (`weights.Tiled`). Only matrices, low-rank factors and the
embedding may have 16-bit or quantised formats; the residual stream, LayerNorms, the recurrence and the state are
float32 in every strategy.

Shapes: B sequences, T tokens, C = n_embd, V = n_vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.device_map import DeviceMap
from rwkv_engine.core.state import LayerState, State
from rwkv_engine.errors import StrategyError
from rwkv_engine.models.block import Block, float32_norm
from rwkv_engine.models.int4 import Int4Error
from rwkv_engine.models.streaming import Streaming
from rwkv_engine.models.weights import Dense, Tiled
from rwkv_engine.ops.embed_norm import Counted, embed_norm
from rwkv_engine.ops.linear import MOST_ROWS


class Model(nn.Module):
    """An RWKV model: maps token ids and a state to logits and a new state.

    Layers may be on several devices; the residual stream is copied from one to the next. Ids and states may be on any
    device; logits and new states are on that of the head, where tokens are sampled.

    Attributes:
        block: the class of the version's layers.
        config: the model's sizes.
        fingerprint: identifies the weights, see `Checkpoint.fingerprint`; it becomes part of every new state.
        streaming: the layers whose matrices stay in main memory; None if there are none.
    """

    block: ClassVar[type[Block]]

    @staticmethod
    def input_moments(name: str, read: Callable[[str], Tensor]) -> Tensor | None:
        """What the weights alone tell about the inputs x of a matrix: E[x_k^2] (K,) float64, up to a factor.

        Args:
            name: the matrix's original name.
            read: reads a tensor of the checkpoint by its original name, in any floating-point dtype.

        Returns:
            None if nothing is known, as for versions that do not implement it.
        """
        return None

    @staticmethod
    def noise(config: ModelConfig, name: str, error: Int4Error) -> float:
        """The noise in the logits that an error in a matrix causes, in a unit that is the same for all matrices."""
        return error.relative

    def __init__(self, config: ModelConfig, fingerprint: str = ""):
        super().__init__()
        self.config = config
        self.fingerprint = fingerprint
        self.streaming: Streaming | None = None
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
        """The devices of the layers; cached until `forget` is called."""
        alone = self.streaming.layers if self.streaming else frozenset[int]()
        return DeviceMap(tuple(block.device for block in self.layers), self.ln_out.weight.device, alone)

    def require_resident(self, what: str) -> None:
        """Refuses what reads the weights from the layers' modules, which streamed layers share buffers for.

        Raises:
            StrategyError: the model has streamed layers; the message begins with `what`.
        """
        if self.streaming:
            raise StrategyError(f"{what}: layers are streamed from main memory; load the model without + for that")

    def forget(self) -> None:
        """Drops what was computed from parameters; to be called after parameters were replaced or moved."""
        self.__dict__.pop("device_map", None)
        for block in self.layers:
            block.forget()

    @property
    def steps_as_it_reads(self) -> bool:
        """Whether `step` gives the bits of `read`: a state then does not depend on which of them processed a token."""
        return all(block.steps_as_it_reads for block in self.layers)

    @staticmethod
    def are_few(tokens: Tensor) -> bool:
        """Whether tokens (B, T) are few enough for `step`. No other place decides this."""
        return tokens.shape[1] == 1 and len(tokens) <= MOST_ROWS

    def forward(self, tokens: Tensor, state: State, full_output: bool = False) -> tuple[Tensor, State]:
        """Processes T tokens of each of B sequences.

        Args:
            tokens: (B, T) int64, T >= 1, each in [0, V).
            state: the state of the same B sequences; not modified.
            full_output: whether to return logits for every token instead of the last one only.

        Returns:
            Logits (B, V) float32, or (B, T, V) with `full_output`; and the state after the last token.
        """
        if self.are_few(tokens) and self.layers[0].is_packed:
            parts = self.device_map.spread(state, copy=True)
            logits = self.step(tokens.squeeze(1), self.device_map.layers(parts))
            state = self.device_map.gather(parts, state.position + 1, self.fingerprint)
            return (logits.unsqueeze(1) if full_output else logits), state
        x, state = self.read(tokens, state)
        return self.head(self.ln_out(x if full_output else x[:, -1])), state

    def read(
        self,
        tokens: Tensor,
        state: State,
        after: list[Tensor] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Tensor, State]:
        """As `forward`, without the output LayerNorm `ln_out` and the head.

        Args:
            tokens: (B, T) int64, T >= 1, each in [0, V); or (1, N) with `lengths`.
            state: the state of the same B sequences; not modified.
            after: a list to which the residual stream after each layer is appended, (B, T, C) on the layer's device.
            lengths: the numbers of tokens of B sequences, which `tokens` contains one after another, N in all.

        Returns:
            The residual stream after the last layer, (B, T, C) or (1, N, C), on the head's device; and the new state.
        """
        x, first = self._embed(tokens), None
        layers = []
        before = self.device_map.layers(self.device_map.spread(state))
        with self._forward_pass():
            for i, (block, device, layer) in enumerate(zip(self.layers, self.device_map.devices, before, strict=True)):
                x, first = x.to(device), None if first is None else first.to(device)
                with self._in_place(i):
                    x, new_layer, first = block(x, layer, first, lengths)
                layers.append({name: new_layer[name] for name in layer})  # fields keep their order
                if after is not None:
                    after.append(x)
        read = tokens.shape[1] if lengths is None else torch.tensor(lengths, device=state.position.device)
        position = state.position + read
        return x.to(self.device_map.home), self.device_map.collect(layers, position, self.fingerprint)

    def step(
        self,
        tokens: Tensor,
        layers: Sequence[LayerState],
        slots: Tensor | None = None,
        before: Tensor | None = None,
        wanted: Tensor | None = None,
        counted: Counted | None = None,
    ) -> Tensor:
        """Processes one token of each of B sequences.

        Args:
            tokens: (B,) int64, each in [0, V).
            layers: the states of all layers, each on its layer's device; replaced in place.
            slots: (B,) int64, the state's row for each of the B sequences, see `ops.TimeMixing4Step`; None if the
                states have B rows in the same order.
            before: (B,) int64, the state's row that each of them begins from, see `ops.Blocks4Step`; None: its slot.
            wanted: (W,) int64, the tokens after which logits are computed; None for all of them.
            counted: the positions that this token advances, on the device of the embedding; None: the caller does it.

        Returns:
            Logits (B, V), or (W, V) with `wanted`.
        """
        norm, table = self.layers[0].ln0, self.emb.weight
        x, first = embed_norm(tokens.to(table.device), table, norm.weight, norm.bias, norm.eps, counted), None
        blocks = self.layers
        with self._forward_pass():
            for device, run in self.device_map.runs:
                if x.device != device:
                    x, first = x.to(device), None if first is None else first.to(device)
                    slots = None if slots is None else slots.to(device)
                    before = None if before is None else before.to(device)
                with self._in_place(run.start):
                    x, first = self.block.steps(blocks[run], x, layers[run], slots, first, before)
        x = (x if wanted is None else x[wanted]).to(self.device_map.home)
        return self.head.after(self.ln_out, x) if isinstance(self.head, Tiled) else self.head(self.ln_out(x))

    def _forward_pass(self) -> AbstractContextManager[None]:
        return self.streaming.forward_pass() if self.streaming else nullcontext()

    def _in_place(self, layer: int) -> AbstractContextManager[None]:
        """The block runs a layer, whose weights are on its device until the end of the block."""
        return self.streaming.layer(layer) if self.streaming else nullcontext()

    def _embed(self, tokens: Tensor) -> Tensor:
        """The normalised embeddings of ids: (...) -> (..., C). LayerNorm is applied after the lookup."""
        norm = self.layers[0].ln0
        return norm(self.emb(tokens.to(self.emb.weight.device)).to(norm.weight.dtype))
