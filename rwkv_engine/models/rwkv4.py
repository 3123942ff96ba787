"""RWKV-4: placed weights and the forward pass (Peng et al. 2023, arXiv:2305.13048, section 3).

Modules carry the tensor names of the original checkpoints (`blocks.0.att.time_decay`, ...), so a state dict is a
checkpoint, unless matrices are packed for the kernels (`weights.Tiled`). Many tokens are read by unfused operators,
with gradients; one token of each sequence, packed, by the fused steps: two calls a layer. Only matrices may be stored
in half precision: residual stream, LayerNorm, recurrence and state are float32 in every strategy.

Shapes: B sequences, T tokens, C = n_embd, A = n_att, F = n_ffn, V = n_vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.device_map import Layout
from rwkv_engine.core.state import FIELDS, LayerState, State
from rwkv_engine.models.weights import Dense, InputMajor, Tiled, scales_of
from rwkv_engine.ops import (
    ChannelMixing4Step,
    TimeMixing4Step,
    channel_mixing4_step,
    gate_residual,
    ln_shift,
    squared_relu,
    time_mixing4_step,
    wkv4,
)
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.ops.slots import replace_rows, rows_of


class TimeMixing(nn.Module):
    """r, k, v from a mix of this token and the last; wkv; the gated output."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c, a = config.n_embd, config.n_att
        self.time_decay = nn.Parameter(torch.empty(a))
        self.time_first = nn.Parameter(torch.empty(a))
        self.time_mix_k = nn.Parameter(torch.empty(c))
        self.time_mix_v = nn.Parameter(torch.empty(c))
        self.time_mix_r = nn.Parameter(torch.empty(c))
        self.key = Dense(c, a)
        self.value = Dense(c, a)
        self.receptance = Dense(c, a)
        self.output = Dense(a, c)

    def forward(self, x: Tensor, norm: nn.LayerNorm, state: LayerState) -> tuple[Tensor, dict[str, Tensor]]:
        """T tokens with their LayerNorm and residual: x (B, T, C) -> (B, T, C), and the new `att_shift, wkv_*`."""
        mixes = torch.stack([self.time_mix_k, self.time_mix_v, self.time_mix_r])
        (k_in, v_in, r_in), shift = ln_shift(x, norm.weight, norm.bias, norm.eps, mixes, state.att_shift)
        k, v, r = self.key(k_in), self.value(v_in), self.receptance(r_in)
        decay = -torch.exp(self.time_decay)
        y, num, den, max = wkv4(decay, self.time_first, k, v, state.wkv_num, state.wkv_den, state.wkv_max)
        out = self.output(gate_residual(None, r, y))
        return x + out, {"att_shift": shift, "wkv_num": num, "wkv_den": den, "wkv_max": max}

    @cached_property
    def _decay(self) -> Tensor:
        """For `step`: a packed model is not trained, so it stays, and on a GPU is no kernel of its own every time."""
        return -torch.exp(self.time_decay)

    def step(self, x: Tensor, norm: nn.LayerNorm, state: LayerState, slots: Tensor | None) -> Tensor:
        """One token with its LayerNorm and residual: x (B, C) -> (B, C); replaces the state's `slots` in place."""
        key, value, receptance, output = (cast(Tiled, m) for m in (self.key, self.value, self.receptance, self.output))
        return time_mixing4_step(
            TimeMixing4Step(
                x,
                norm.weight,
                norm.bias,
                norm.eps,
                self.time_mix_k,
                self.time_mix_v,
                self.time_mix_r,
                self._decay,
                self.time_first,
                key.tiles,
                value.tiles,
                receptance.tiles,
                output.tiles,
                state.att_shift,
                state.wkv_num,
                state.wkv_den,
                state.wkv_max,
                slots,
                scales_of(key, value, receptance, output),
            )
        )


class ChannelMixing(nn.Module):
    """sigmoid(r) * V relu(K x)^2 over a mix of this token and the last."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c, f = config.n_embd, config.n_ffn
        self.time_mix_k = nn.Parameter(torch.empty(c))
        self.time_mix_r = nn.Parameter(torch.empty(c))
        self.key = Dense(c, f)
        self.receptance = Dense(c, c)
        self.value = Dense(f, c)

    def forward(self, x: Tensor, norm: nn.LayerNorm, state: LayerState) -> tuple[Tensor, dict[str, Tensor]]:
        """T tokens with their LayerNorm and residual: x (B, T, C) -> (B, T, C), and the new `ffn_shift`."""
        mixes = torch.stack([self.time_mix_k, self.time_mix_r])
        (k_in, r_in), shift = ln_shift(x, norm.weight, norm.bias, norm.eps, mixes, state.ffn_shift)
        v = self.value(squared_relu(self.key(k_in)))
        return gate_residual(x, self.receptance(r_in), v), {"ffn_shift": shift}

    def step(self, x: Tensor, norm: nn.LayerNorm, state: LayerState, slots: Tensor | None) -> Tensor:
        """One token with its LayerNorm and residual: x (B, C) -> (B, C); replaces the state's `slots` in place."""
        key, receptance = cast(Tiled, self.key), cast(Tiled, self.receptance)
        value = cast(InputMajor, self.value)
        return channel_mixing4_step(
            ChannelMixing4Step(
                x,
                norm.weight,
                norm.bias,
                norm.eps,
                self.time_mix_k,
                self.time_mix_r,
                key.tiles,
                receptance.tiles,
                value.rows,
                state.ffn_shift,
                slots,
                scales_of(key, receptance, value),
            )
        )


class Block(nn.Module):
    """One layer. Block 0 also owns ln0, which normalises the embedding."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        eps = config.layer_norm_eps
        if index == 0:
            self.ln0 = nn.LayerNorm(config.n_embd, eps)
        self.ln1 = nn.LayerNorm(config.n_embd, eps)
        self.ln2 = nn.LayerNorm(config.n_embd, eps)
        self.att = TimeMixing(config)
        self.ffn = ChannelMixing(config)

    def forward(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """x (B, T, C): the residual stream."""
        x, att_state = self.att(x, self.ln1, state)
        x, ffn_state = self.ffn(x, self.ln2, state)
        return x, LayerState(**att_state, **ffn_state)

    @property
    def is_packed(self) -> bool:
        """Whether the matrices are as `step` reads them."""
        return isinstance(self.ffn.value, InputMajor)

    @property
    def device(self) -> torch.device:
        """Where this layer runs."""
        return self.ln1.weight.device

    def step(self, x: Tensor, state: LayerState, slots: Tensor | None) -> Tensor:
        """One token: x (B, C) -> (B, C); replaces the state's rows `slots` (B,) in place, None: all B in order."""
        if self.is_packed:
            x = self.att.step(x, self.ln1, state, slots)
            return self.ffn.step(x, self.ln2, state, slots)
        before = LayerState(**{name: rows_of(getattr(state, name), slots) for name in FIELDS})
        y, after = self(x.unsqueeze(1), before)
        for name in FIELDS:
            replace_rows(getattr(state, name), slots, getattr(after, name))
        return y.squeeze(1)


class Rwkv4(nn.Module):
    """The model: token ids and a state in, logits and a new state out.

    Layers may be on several devices. The residual stream goes from one to the next; ids and states are taken from any
    device; logits and new states are on the head's, which is where a token is drawn.
    """

    def __init__(self, config: ModelConfig, fingerprint: str = ""):
        super().__init__()
        self.config = config
        self.fingerprint = fingerprint
        # Its own random numbers would, on the meta device, import torch's compiler: a second and 70 MB.
        self.emb = nn.Embedding.from_pretrained(torch.empty(config.n_vocab, config.n_embd), freeze=False)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head = Dense(config.n_embd, config.n_vocab)

    @cached_property
    def layout(self) -> Layout:
        """Where the layers are; they stay there once the model has run."""
        return Layout(tuple(cast(Block, block).device for block in self.blocks), self.ln_out.weight.device)

    def forward(self, tokens: Tensor, state: State, full_output: bool = False) -> tuple[Tensor, State]:
        """Reads T tokens of each of B sequences.

        Args:
            tokens: (B, T) int64, T >= 1, each in [0, V).
            state: of the same B sequences; not modified.
            full_output: logits for every token instead of the last one.

        Returns:
            Logits (B, V), or (B, T, V) with `full_output`; and the state after the last token.
        """
        if cast(Block, self.blocks[0]).is_packed and tokens.shape[1] == 1 and len(tokens) <= MOST_ROWS:
            parts = self.layout.spread(state, copy=True)
            logits = self.step(tokens.squeeze(1), self.layout.layers(parts))
            state = self.layout.gather(parts, state.position + 1, self.fingerprint)
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
        x = self._embed(tokens)
        layers = []
        before = self.layout.layers(self.layout.spread(state))
        for block, device, layer in zip(self.blocks, self.layout.devices, before, strict=True):
            x, new_layer = block(x.to(device), layer)
            layers.append(new_layer)
            if after is not None:
                after.append(x)
        position = state.position + tokens.shape[1]
        return x.to(self.layout.home), self.layout.collect(layers, position, self.fingerprint)

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
        x = self._embed(tokens)
        for block, device, layer in zip(self.blocks, self.layout.devices, layers, strict=True):
            if x.device != device:
                x, slots = x.to(device), None if slots is None else slots.to(device)
            x = cast(Block, block).step(x, layer, slots)
        return self.head(self.ln_out(x.to(self.layout.home)))

    def _embed(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., C), normalised: the table stays as it is in the file."""
        norm = cast(Block, self.blocks[0]).ln0
        return norm(self.emb(tokens.to(self.emb.weight.device)).to(norm.weight.dtype))
