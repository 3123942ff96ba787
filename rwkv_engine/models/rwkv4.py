"""RWKV-4: time mixing and channel mixing (Peng et al. 2023, arXiv:2305.13048, section 3).

Many tokens are processed by unfused operators, with gradients; one token of each sequence, with packed weights, by the
fused step, one call for all layers of a device.

Shapes: B sequences, T tokens, C = n_embd, A = n_att, F = n_ffn, V = n_vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.core.state import LayerState
from rwkv_engine.models.block import Block, float32_parameter
from rwkv_engine.models.model import Model
from rwkv_engine.models.prepared import forget, prepared, whole_fields
from rwkv_engine.models.rwkv4_derived import Derived, shifted
from rwkv_engine.models.rwkv4_noise import input_moments, noise
from rwkv_engine.models.weights import Dense, InputMajor, Tiled, scales_of
from rwkv_engine.ops import (
    Blocks4Step,
    activate_rows,
    blocks4_step,
    gate_residual,
    residual_rows,
    squared_relu_,
    untile_alike,
    wkv4,
)


class Fixed(NamedTuple):
    """The arguments of a fused step that are the same for every token, in the order of `Blocks4Step`."""

    parameters: list[Tensor]
    scales: list[Tensor | None]


class TimeMixing(nn.Module):
    """Time mixing: r, k and v of a mix of this token and the last, the wkv recurrence, and the gated output."""

    def __init__(self, config: Rwkv4Config):
        super().__init__()
        c, a = config.n_embd, config.n_att
        self.time_decay = float32_parameter(a)
        self.time_first = float32_parameter(a)
        self.time_mix_k = float32_parameter(c)
        self.time_mix_v = float32_parameter(c)
        self.time_mix_r = float32_parameter(c)
        self.key = Dense(c, a)
        self.value = Dense(c, a)
        self.receptance = Dense(c, a)
        self.output = Dense(a, c)

    def forward(
        self, x: Tensor, norm: nn.LayerNorm, state: LayerState, lengths: Sequence[int] | None, derived: Derived
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """T tokens, with LayerNorm and residual: x (B, T, C) -> (B, T, C), and the new `att_shift` and `wkv_*`."""
        dtype = derived.rounded_for(x, self.key, self.value, self.receptance, self.output)
        (k_in, v_in, r_in), shift = shifted(x, norm, derived.mixes, state["att_shift"], lengths, dtype)
        if dtype is None:
            k, v, r = self.key(k_in), self.value(v_in), self.receptance(r_in)
        else:
            own = [cast(Tiled, matrix) for matrix in (self.key, self.value, self.receptance)]
            weights = untile_alike([matrix.tiles for matrix in own], own[0].out_features, own[0].in_features)
            k, v, r = (
                matrix(rows, weight) for matrix, rows, weight in zip(own, (k_in, v_in, r_in), weights, strict=True)
            )
        before = state["wkv_num"], state["wkv_den"], state["wkv_max"]
        assert derived.decay is not None
        y, num, den, max = wkv4(derived.decay, self.time_first, k, v, *before, lengths=lengths)
        if dtype is None:
            x = x + self.output(gate_residual(None, r, y))
        else:
            rows, powers = activate_rows(y.flatten(0, 1), r.flatten(0, 1), dtype)
            x = residual_rows(x.flatten(0, 1), None, self.output(rows), powers).view_as(x)
        return x, {"att_shift": shift, "wkv_num": num, "wkv_den": den, "wkv_max": max}

    def derived(self, norm: nn.LayerNorm) -> Derived:
        """What `forward` derives from the parameters."""
        mixes = torch.stack([self.time_mix_k, self.time_mix_v, self.time_mix_r])
        return Derived(mixes, -torch.exp(self.time_decay), norm)

    def fixed(self, norm: nn.LayerNorm) -> Fixed:
        """The arguments of `TimeMixing4Step` from `ln_weight` to `output` but `eps`, and `scales`."""
        key, value, receptance, output = (cast(Tiled, m) for m in (self.key, self.value, self.receptance, self.output))
        return Fixed(
            [
                norm.weight,
                norm.bias,
                self.time_mix_k,
                self.time_mix_v,
                self.time_mix_r,
                -torch.exp(self.time_decay),
                self.time_first,
                key.tiles,
                value.tiles,
                receptance.tiles,
                output.tiles,
            ],
            scales_of(key, value, receptance, output),
        )


class ChannelMixing(nn.Module):
    """Channel mixing: sigmoid(r) * V relu(K x)^2, where r and x are computed from a mix of this token and the last."""

    def __init__(self, config: Rwkv4Config):
        super().__init__()
        c, f = config.n_embd, config.n_ffn
        self.time_mix_k = float32_parameter(c)
        self.time_mix_r = float32_parameter(c)
        self.key = Dense(c, f)
        self.receptance = Dense(c, c)
        self.value = Dense(f, c)

    def forward(
        self, x: Tensor, norm: nn.LayerNorm, state: LayerState, lengths: Sequence[int] | None, derived: Derived
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """T tokens, with LayerNorm and residual: x (B, T, C) -> (B, T, C), and the new `ffn_shift`."""
        dtype = derived.rounded_for(x, self.key, self.receptance, self.value)
        (k_in, r_in), shift = shifted(x, norm, derived.mixes, state["ffn_shift"], lengths, dtype)
        k, r = self.key(k_in), self.receptance(r_in)
        if dtype is None:
            return gate_residual(x, r, self.value(squared_relu_(k))), {"ffn_shift": shift}
        rows, powers = activate_rows(k.flatten(0, 1), None, dtype)
        y = residual_rows(x.flatten(0, 1), r.flatten(0, 1), self.value(rows), powers)
        return y.view_as(x), {"ffn_shift": shift}

    def derived(self, norm: nn.LayerNorm) -> Derived:
        """What `forward` derives from the parameters."""
        return Derived(torch.stack([self.time_mix_k, self.time_mix_r]), None, norm)

    def fixed(self, norm: nn.LayerNorm) -> Fixed:
        """The arguments of `ChannelMixing4Step` from `ln_weight` to `value`, and `scales`."""
        key, receptance = cast(Tiled, self.key), cast(Tiled, self.receptance)
        value = cast(InputMajor, self.value)
        return Fixed(
            [
                norm.weight,
                norm.bias,
                self.time_mix_k,
                self.time_mix_r,
                key.tiles,
                receptance.tiles,
                value.rows,
            ],
            scales_of(key, receptance, value),
        )


# The fields of a layer's state, in the order of `Blocks4Step`.
_STATE = ("att_shift", "wkv_num", "wkv_den", "wkv_max", "ffn_shift")


class Rwkv4Block(Block):
    """One layer of an RWKV-4, whose layer 0 passes nothing to later layers."""

    watched = MappingProxyType({"att k": "att.key", "ffn k": "ffn.key"})
    chains = True

    def __init__(self, config: Rwkv4Config, index: int):
        super().__init__(config, index)
        self.att = TimeMixing(config)
        self.ffn = ChannelMixing(config)

    def forward(
        self, x: Tensor, state: LayerState, first: Tensor | None = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, LayerState, Tensor | None]:
        """Processes many tokens, see `Block.forward`."""
        time, channel = self._derived if self.is_packed else self._derive()
        x, att_state = self.att(x, self.ln1, state, lengths, time)
        x, ffn_state = self.ffn(x, self.ln2, state, lengths, channel)
        return x, {**att_state, **ffn_state}, None

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
        fixed = [cast(Rwkv4Block, block)._fixed for block in blocks]
        if any(layer is None for layer in fixed):
            return super().steps(blocks, x, states, slots, first, before)
        packed = cast("list[Fixed]", fixed)

        def lists() -> tuple[list[Tensor], list[Tensor | None]]:
            return [t for layer in packed for t in layer.parameters], [t for layer in packed for t in layer.scales]

        if (fields := whole_fields("PreparedLayers4", states, _STATE)) is not None:
            return prepared("PreparedLayers4", blocks, packed, lists).step(x, fields, slots, before), None
        state = [layer[name] for layer in states for name in _STATE]
        return blocks4_step(Blocks4Step(x, blocks[0].ln1.eps, *lists(), state, slots, before)), None

    @cached_property
    def _fixed(self) -> Fixed | None:
        """What a fused step needs besides x and the state; None if nothing is packed.

        It is cached because looking up so many attributes of modules takes a tenth of the time of a small model.
        """
        if not self.is_packed:
            return None
        time, channel = self.att.fixed(self.ln1), self.ffn.fixed(self.ln2)
        return Fixed([*time.parameters, *channel.parameters], [*time.scales, *channel.scales])

    def _derive(self) -> tuple[Derived, Derived]:
        return self.att.derived(self.ln1), self.ffn.derived(self.ln2)

    @cached_property
    def _derived(self) -> tuple[Derived, Derived]:
        """What a prompt needs; without a gradient, as the parameters of packed layers. On a GPU each is a launch."""
        with torch.no_grad():
            return self._derive()

    @property
    def is_packed(self) -> bool:
        """Whether the matrices have the memory layouts that the kernels of `step` read."""
        return isinstance(self.ffn.value, InputMajor)

    @property
    def steps_as_it_reads(self) -> bool:
        """Whether `step` gives the bits of `forward`: with int8 weights on the CPU."""
        return self.sums_integers

    def forget(self) -> None:
        """Drops tensors that were computed from parameters."""
        for name in ("_fixed", "_derived"):
            self.__dict__.pop(name, None)
        forget(self)


class Rwkv4(Model):
    """An RWKV-4 model."""

    block = Rwkv4Block
    input_moments = staticmethod(input_moments)
    noise = staticmethod(noise)
