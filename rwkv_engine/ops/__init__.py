"""The operators: schema, equation, torch reference and public function of each. Compiled kernels replace references."""

from rwkv_engine.ops.activate_rows import activate_rows
from rwkv_engine.ops.blocks4_step import Blocks4Step, blocks4_step
from rwkv_engine.ops.blocks7_step import Blocks7Step, Layer7, blocks7_step
from rwkv_engine.ops.channel_mixing4_step import ChannelMixing4Step, channel_mixing4_step
from rwkv_engine.ops.draw_tokens import draw_tokens
from rwkv_engine.ops.embed_norm import embed_norm
from rwkv_engine.ops.gate_residual import gate_residual
from rwkv_engine.ops.linear import linear
from rwkv_engine.ops.linear_many import linear_many
from rwkv_engine.ops.ln_shift import ln_shift, ln_shift_rounded
from rwkv_engine.ops.most_likely import most_likely
from rwkv_engine.ops.norm_linear import norm_linear
from rwkv_engine.ops.philox_uniform import philox_uniform
from rwkv_engine.ops.quantised_product import quantised_product
from rwkv_engine.ops.residual_rows import residual_rows
from rwkv_engine.ops.scale_rows import scale_rows
from rwkv_engine.ops.squared_relu import squared_relu_
from rwkv_engine.ops.tiles import tile, untile, untile_alike
from rwkv_engine.ops.time_mixing4_step import TimeMixing4Step, time_mixing4_step
from rwkv_engine.ops.wkv4 import wkv4
from rwkv_engine.ops.wkv7 import wkv7
from rwkv_engine.ops.wkv7_gated import wkv7_gated
from rwkv_engine.ops.wkv7_inputs import Gates7, Wkv7Inputs, wkv7_inputs

__all__ = [
    "Blocks4Step",
    "Blocks7Step",
    "ChannelMixing4Step",
    "Gates7",
    "Layer7",
    "TimeMixing4Step",
    "Wkv7Inputs",
    "activate_rows",
    "blocks4_step",
    "blocks7_step",
    "channel_mixing4_step",
    "draw_tokens",
    "embed_norm",
    "gate_residual",
    "linear",
    "linear_many",
    "ln_shift",
    "ln_shift_rounded",
    "most_likely",
    "norm_linear",
    "philox_uniform",
    "quantised_product",
    "residual_rows",
    "scale_rows",
    "squared_relu_",
    "tile",
    "time_mixing4_step",
    "untile",
    "untile_alike",
    "wkv4",
    "wkv7",
    "wkv7_gated",
    "wkv7_inputs",
]
