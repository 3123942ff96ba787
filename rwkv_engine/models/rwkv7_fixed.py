"""What the fused step of RWKV-7 needs of a layer for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from rwkv_engine.models.weights import InputMajor, Tiled, scales_of
from rwkv_engine.ops import Gates7, Layer7

if TYPE_CHECKING:
    from rwkv_engine.models.rwkv7 import ChannelMixing, TimeMixing

# The fields of a layer's state, in the order of `Blocks7Step`.
STATE = ("att_shift", "wkv", "ffn_shift")


class Fixed(NamedTuple):
    """The arguments of a fused step that are the same for every token."""

    layer: Layer7
    scales: list[Tensor | None]
    gates: Gates7  # those of the layer's parameters that prompts take


def fixed(ln1: nn.LayerNorm, att: TimeMixing, ln2: nn.LayerNorm, ffn: ChannelMixing) -> Fixed:
    """The parameters of a packed layer as the fused step reads them."""
    matrices = att.receptance, att.key, att.value, att.output, ffn.key
    receptance, key, value, output, ffn_key = (cast(Tiled, matrix) for matrix in matrices)
    ffn_value = cast(InputMajor, ffn.value)
    none = torch.empty(0, dtype=torch.float32, device=ln1.weight.device)
    layer = Layer7(
        ln1_weight=ln1.weight,
        ln1_bias=ln1.bias,
        mixes=att.mixes(),
        w0=att.w0,
        a0=att.a0,
        v0=att.v0 if att.mixes_values else none,
        **{f"{x}{i}": att.tiled(f"{x}{i}").tiles for x in "wag" for i in (1, 2)},
        **{f"v{i}": att.tiled(f"v{i}").tiles if att.mixes_values else none for i in (1, 2)},
        k_k=att.k_k,
        k_a=att.k_a,
        r_k=att.r_k,
        ln_x_weight=att.ln_x.weight,
        ln_x_bias=att.ln_x.bias,
        receptance=receptance.tiles,
        key=key.tiles,
        value=value.tiles,
        output=output.tiles,
        ln2_weight=ln2.weight,
        ln2_bias=ln2.bias,
        ffn_mix=1 - ffn.x_k,
        ffn_key=ffn_key.tiles,
        ffn_value=ffn_value.rows,
    )
    gates = Gates7(*(getattr(layer, name) for name in Gates7._fields))
    return Fixed(layer, scales_of(receptance, key, value, output, ffn_key, ffn_value), gates)
