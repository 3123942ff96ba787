"""RWKV-7: time mixing and channel mixing (Peng et al. 2025, arXiv:2503.14456, section 4).

Many tokens are processed by unfused operators, with gradients; one token of each sequence, with packed weights, by the
fused step, one call for all layers of a device.

Shapes: B sequences, T tokens, C = n_embd, H heads of N channels, A = H N, F = n_ffn. `...` is (B, T).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_engine.core.rwkv7 import Rwkv7Config
from rwkv_engine.core.state import LayerState
from rwkv_engine.core.weight_format import float_format
from rwkv_engine.models.arrange import arrange
from rwkv_engine.models.block import Block, float32_norm, float32_parameter
from rwkv_engine.models.model import Model
from rwkv_engine.models.prepared import forget, prepared, whole_fields
from rwkv_engine.models.rwkv7_fixed import STATE, Fixed, fixed
from rwkv_engine.models.rwkv7_noise import input_moments
from rwkv_engine.models.weights import Dense, InputMajor, Tiled
from rwkv_engine.ops import (
    Blocks7Step,
    Gates7,
    Wkv7Inputs,
    blocks7_step,
    ln_shift,
    squared_relu_,
    wkv7,
    wkv7_gated,
    wkv7_inputs,
)
from rwkv_engine.ops.wkv7_gated import GROUP_NORM_EPS
from rwkv_engine.ops.wkv7_inputs import inputs_by

MIXES = "rwkvag"
ALIGNED_RANK = 32  # a multiple of two vector registers


class TimeMixing(nn.Module):
    """Time mixing: six mixes of this token and the last, the delta rule, GroupNorm, a bonus, and the gated output."""

    w0: Tensor
    a0: Tensor
    v0: Tensor

    def __init__(self, config: Rwkv7Config, index: int):
        super().__init__()
        c, a = config.n_embd, config.n_att
        self.heads = config.n_head, config.head_size
        for name in MIXES:
            setattr(self, f"x_{name}", float32_parameter(c))
        self.mixes_values = index > 0
        ranks = {"w": config.rank_w, "a": config.rank_a, "g": config.rank_g}
        if self.mixes_values:
            ranks["v"] = config.rank_v
        for name, rank in ranks.items():
            if name != "g":
                setattr(self, f"{name}0", float32_parameter(a))
            setattr(self, f"{name}1", float32_parameter(c, rank))
            setattr(self, f"{name}2", float32_parameter(rank, a))
        self.k_k, self.k_a = float32_parameter(a), float32_parameter(a)
        self.r_k = float32_parameter(*self.heads)
        self.receptance, self.key, self.value = (Dense(c, a) for _ in range(3))
        self.output = Dense(a, c)
        self.ln_x = float32_norm(a, GROUP_NORM_EPS)
        self.factors: dict[str, Tiled] = {}  # copies of the low-rank factors in tiles, made at first use

    def shifted(
        self, x: Tensor, norm: nn.LayerNorm, shift: Tensor, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """LayerNorm and the six mixes: x (B, T, C) -> (6, B, T, C), and the new shift (B, C)."""
        return ln_shift(x, norm.weight, norm.bias, norm.eps, self.mixes(), shift, lengths)

    def mixes(self) -> Tensor:
        """The weights of this token in the six mixes, (6, C); x_ are those of the last token."""
        return 1 - torch.stack([getattr(self, f"x_{name}") for name in MIXES])

    def recurrent(self, mixed: Tensor, first: Tensor | None, gates: Gates7 | None) -> tuple[Tensor, Wkv7Inputs, Tensor]:
        """The inputs of the recurrence from the mixes (6, B, T, C), r and the others (B, T, A); and layer 0's values.

        `gates`: of packed layers.
        """
        r, k, v = self.receptance(mixed[0]), self.key(mixed[2]), self.value(mixed[3])
        head_size = self.heads[1]
        if gates is None:
            assert first is not None or not self.mixes_values
            values = (first, self.v0) if first is not None and self.mixes_values else None
            inputs = inputs_by(self._low_rank, mixed, k, v, values, head_size, self.w0, self.a0, self.k_k, self.k_a)
        else:
            own = first.flatten(0, 1) if first is not None and self.mixes_values else None
            rows = wkv7_inputs(mixed.flatten(1, 2), k.flatten(0, 1), v.flatten(0, 1), own, head_size, gates)
            inputs = Wkv7Inputs(*(x.view_as(k) for x in rows))
        return r, inputs, first if first is not None and self.mixes_values else inputs.v

    def gated(self, y: Tensor, r: Tensor, inputs: Wkv7Inputs) -> Tensor:
        """What time mixing adds to the residual stream, (B, T, C): y (B, T, H, N) is the output of `wkv7`."""
        flat, own_r, k, v, gate = (x.flatten(0, 1) for x in (y.flatten(2), r, inputs.k, inputs.v, inputs.gate))
        gated = wkv7_gated(flat, own_r, k, v, gate, self.r_k, self.ln_x.weight, self.ln_x.bias)
        return self.output(gated.view_as(r))

    def by_head(self, x: Tensor) -> Tensor:
        """(..., A) -> (..., H, N)."""
        return x.unflatten(-1, self.heads)

    def _low_rank(self, name: str, x: Tensor, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
        """activation(x W1) W2, in the dtype of x."""
        hidden = x @ getattr(self, f"{name}1").to(x.dtype)
        return (hidden if activation is None else activation(hidden)) @ getattr(self, f"{name}2").to(x.dtype)

    def tiled(self, name: str) -> Tiled:
        """A low-rank factor in tiles, in which the kernels read it."""
        if name not in self.factors:
            weight = getattr(self, name)
            # Ranks are padded with zeros, or torch's activations would compute the last ones of a batch differently.
            padding = -weight.shape[name.endswith("1")] % ALIGNED_RANK
            weight = F.pad(weight.detach(), (0, padding) if name.endswith("1") else (0, 0, 0, padding))
            inputs, outputs = weight.shape
            tiles, _ = arrange(weight.t(), "tiles", float_format(weight.dtype))
            self.factors[name] = Tiled(tiles, outputs, inputs)
        return self.factors[name]


class ChannelMixing(nn.Module):
    """Channel mixing: V relu(K x)^2, where x is a mix of this token and the last."""

    def __init__(self, config: Rwkv7Config):
        super().__init__()
        self.x_k = float32_parameter(config.n_embd)
        self.key = Dense(config.n_embd, config.n_ffn)
        self.value = Dense(config.n_ffn, config.n_embd)

    def shifted(
        self, x: Tensor, norm: nn.LayerNorm, shift: Tensor, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """LayerNorm and the mix: x (B, T, C) -> (B, T, C), and the new shift (B, C)."""
        mixed, shift = ln_shift(x, norm.weight, norm.bias, norm.eps, 1 - self.x_k.unsqueeze(0), shift, lengths)
        return mixed[0], shift

    def forward(self, mixed: Tensor) -> Tensor:
        """What channel mixing adds to the residual stream: (..., C) -> (..., C)."""
        return self.value(squared_relu_(self.key(mixed)))


class Rwkv7Block(Block):
    """One layer of an RWKV-7. Layer 0 passes its values to the later layers, which mix them into their own."""

    watched = MappingProxyType({"att k": "att.key", "ffn k": "ffn.key"})
    chains = True

    def __init__(self, config: Rwkv7Config, index: int):
        super().__init__(config, index)
        self.att = TimeMixing(config, index)
        self.ffn = ChannelMixing(config)

    def forward(
        self, x: Tensor, state: LayerState, first: Tensor | None = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, LayerState, Tensor | None]:
        """Processes many tokens, see `Block.forward`."""
        mixed, att_shift = self.att.shifted(x, self.ln1, state["att_shift"], lengths)
        fixed = self._fixed
        r, inputs, first = self.att.recurrent(mixed, first, None if fixed is None else fixed.gates)
        own_r, w, k, v, kappa, a = (self.att.by_head(tensor) for tensor in (r, *inputs[:5]))
        y, wkv = wkv7(own_r, w, k, v, kappa, a, state["wkv"], lengths=lengths)
        x = x + self.att.gated(y, r, inputs)
        mixed, ffn_shift = self.ffn.shifted(x, self.ln2, state["ffn_shift"], lengths)
        return x + self.ffn(mixed), {"att_shift": att_shift, "ffn_shift": ffn_shift, "wkv": wkv}, first

    @classmethod
    def steps(
        cls,
        blocks: Sequence[Block],
        x: Tensor,
        states: Sequence[LayerState],
        slots: Tensor | None,
        first: Tensor | None = None,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Processes one token of each sequence, see `Block.steps`; layers with packed weights by one fused operator."""
        fixed = [cast(Rwkv7Block, block)._fixed for block in blocks]
        if any(layer is None for layer in fixed):
            return super().steps(blocks, x, states, slots, first, before)
        packed = cast("list[Fixed]", fixed)
        if first is None:  # layer 0 writes it
            first = torch.empty(len(x), packed[0].layer.r_k.numel(), dtype=x.dtype, device=x.device)

        def lists() -> tuple[list[Tensor], list[Tensor | None]]:
            return [t for layer in packed for t in layer.layer], [t for layer in packed for t in layer.scales]

        if (fields := whole_fields("PreparedLayers7", states, STATE)) is not None:
            return prepared("PreparedLayers7", blocks, packed, lists).step(x, first, fields, slots, before), first
        state = [layer[name] for layer in states for name in STATE]
        step = Blocks7Step(x, first, blocks[0].ln1.eps, *lists(), state, slots, before)
        return blocks7_step(step), first

    @cached_property
    def _fixed(self) -> Fixed | None:
        """What a fused step needs besides x and the state; None if nothing is packed. Cached, see `Rwkv4Block`."""
        return fixed(self.ln1, self.att, self.ln2, self.ffn) if self.is_packed else None

    @property
    def is_packed(self) -> bool:
        """Whether the matrices have the memory layouts that the kernels of `step` read."""
        return isinstance(self.ffn.value, InputMajor)

    @property
    def steps_as_it_reads(self) -> bool:
        """Whether `step` gives the bits of `forward`: with int8 weights on the CPU. What lies between the products of
        large matrices is computed by the same functions in both."""
        return self.sums_integers

    def forget(self) -> None:
        """Drops tensors that were computed from parameters."""
        self.att.factors.clear()
        self.__dict__.pop("_fixed", None)
        forget(self)


class Rwkv7(Model):
    """An RWKV-7 model."""

    block = Rwkv7Block
    input_moments = staticmethod(input_moments)
