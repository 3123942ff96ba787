"""RWKV-4: placed weights and the forward pass (Peng et al. 2023, arXiv:2305.13048, section 3).

Modules carry the tensor names of the original checkpoints (`blocks.0.att.time_decay`, ...), so a state dict is a
checkpoint, unless matrices are packed for the kernels (`weights.Tiled`). Many tokens are read by unfused operators,
with gradients; one token of each sequence, packed, by the fused steps: two calls a layer. Only matrices may be stored
in half precision: residual stream, LayerNorm, recurrence and state are float32 in every strategy.

Shapes: B sequences, T tokens, C = n_embd, A = n_att, F = n_ffn, V = n_vocab.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.state import LayerState, State
from rwkv_engine.models.weights import Dense, InputMajor, Tiled
from rwkv_engine.ops import channel_mixing_step, time_mixing_step, wkv4
from rwkv_engine.ops.linear import MOST_ROWS


def token_shift(x: Tensor, last: Tensor) -> Tensor:
    """The sequence one token later: row t holds x[t-1], row 0 holds `last` (B, C) from the state."""
    return torch.cat([last.unsqueeze(1), x[:, :-1]], dim=1)


class TimeMixing(nn.Module):
    """r, k, v from a mix of this token and the last; wkv; the gated output. x (B, T, C) -> (B, T, C)."""

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

    def forward(self, x: Tensor, state: LayerState) -> tuple[Tensor, dict[str, Tensor]]:
        """x: normalised. Returns what to add to the residual, and the new `att_shift, wkv_*`."""
        shifted = token_shift(x, state.att_shift)
        r = self.receptance(torch.lerp(shifted, x, self.time_mix_r))
        k = self.key(torch.lerp(shifted, x, self.time_mix_k))
        v = self.value(torch.lerp(shifted, x, self.time_mix_v))
        decay = -torch.exp(self.time_decay)
        y, num, den, max = wkv4(decay, self.time_first, k, v, state.wkv_num, state.wkv_den, state.wkv_max)
        out = self.output(torch.sigmoid(r) * y)
        return out, {"att_shift": x[:, -1], "wkv_num": num, "wkv_den": den, "wkv_max": max}

    def step(self, x: Tensor, norm: nn.LayerNorm, state: LayerState) -> Tensor:
        """One token with its LayerNorm and residual: x (B, C) -> (B, C); replaces the state in place."""
        return time_mixing_step(
            x,
            norm.weight,
            norm.bias,
            norm.eps,
            self.time_mix_k,
            self.time_mix_v,
            self.time_mix_r,
            -torch.exp(self.time_decay),
            self.time_first,
            cast(Tiled, self.key).tiles,
            cast(Tiled, self.value).tiles,
            cast(Tiled, self.receptance).tiles,
            cast(Tiled, self.output).tiles,
            state.att_shift,
            state.wkv_num,
            state.wkv_den,
            state.wkv_max,
        )


class ChannelMixing(nn.Module):
    """sigmoid(r) * V relu(K x)^2 over a mix of this token and the last. x (B, T, C) -> (B, T, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c, f = config.n_embd, config.n_ffn
        self.time_mix_k = nn.Parameter(torch.empty(c))
        self.time_mix_r = nn.Parameter(torch.empty(c))
        self.key = Dense(c, f)
        self.receptance = Dense(c, c)
        self.value = Dense(f, c)

    def forward(self, x: Tensor, state: LayerState) -> tuple[Tensor, dict[str, Tensor]]:
        """x: normalised. Returns what to add to the residual, and the new `ffn_shift`."""
        shifted = token_shift(x, state.ffn_shift)
        r = self.receptance(torch.lerp(shifted, x, self.time_mix_r))
        k = self.key(torch.lerp(shifted, x, self.time_mix_k))
        return torch.sigmoid(r) * self.value(torch.relu(k).square()), {"ffn_shift": x[:, -1]}

    def step(self, x: Tensor, norm: nn.LayerNorm, state: LayerState) -> Tensor:
        """One token with its LayerNorm and residual: x (B, C) -> (B, C); replaces the state in place."""
        return channel_mixing_step(
            x,
            norm.weight,
            norm.bias,
            norm.eps,
            self.time_mix_k,
            self.time_mix_r,
            cast(Tiled, self.key).tiles,
            cast(Tiled, self.receptance).tiles,
            cast(InputMajor, self.value).rows,
            state.ffn_shift,
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
        out, att_state = self.att(self.ln1(x), state)
        x = x + out
        out, ffn_state = self.ffn(self.ln2(x), state)
        return x + out, LayerState(**att_state, **ffn_state)

    @property
    def is_packed(self) -> bool:
        """Whether the matrices are as `step` reads them."""
        return isinstance(self.ffn.value, InputMajor)

    def step(self, x: Tensor, state: LayerState) -> Tensor:
        """One token: x (B, C) -> (B, C); replaces the state in place."""
        x = self.att.step(x, self.ln1, state)
        return self.ffn.step(x, self.ln2, state)


class Rwkv4(nn.Module):
    """The model: token ids and a state in, logits and a new state out."""

    def __init__(self, config: ModelConfig, fingerprint: str = ""):
        super().__init__()
        self.config = config
        self.fingerprint = fingerprint
        # Its own random numbers would, on the meta device, import torch's compiler: a second and 70 MB.
        self.emb = nn.Embedding.from_pretrained(torch.empty(config.n_vocab, config.n_embd), freeze=False)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head = Dense(config.n_embd, config.n_vocab)

    def forward(self, tokens: Tensor, state: State, full_output: bool = False) -> tuple[Tensor, State]:
        """Reads T tokens of each of B sequences.

        Args:
            tokens: (B, T) int64, T >= 1, each in [0, V).
            state: of the same B sequences; not modified.
            full_output: logits for every token instead of the last one.

        Returns:
            Logits (B, V), or (B, T, V) with `full_output`; and the state after the last token.
        """
        first = cast(Block, self.blocks[0])
        x = first.ln0(self.emb(tokens).to(first.ln0.weight.dtype))
        if first.is_packed and tokens.shape[1] == 1 and len(tokens) <= MOST_ROWS:
            logits, state = self._step(x, state)
            return (logits.unsqueeze(1) if full_output else logits), state
        layers = []
        for block, layer in zip(self.blocks, state.layers(), strict=True):
            x, new_layer = block(x, layer)
            layers.append(new_layer)
        x = self.ln_out(x if full_output else x[:, -1])
        position = state.position + tokens.shape[1]
        return self.head(x), State.from_layers(layers, position, self.fingerprint)

    def _step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        state = state.clone()
        row = x.squeeze(1)
        for block, layer in zip(self.blocks, state.layers(), strict=True):
            row = cast(Block, block).step(row, layer)
        logits = self.head(self.ln_out(row))
        return logits, replace(state, position=state.position + 1, fingerprint=self.fingerprint)
