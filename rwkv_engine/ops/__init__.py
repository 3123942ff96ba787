"""Operators: schema, equation and torch reference. Compiled kernels take over when loaded."""

from rwkv_engine.ops.channel_mixing_step import channel_mixing_step
from rwkv_engine.ops.linear import linear
from rwkv_engine.ops.philox_uniform import philox_uniform
from rwkv_engine.ops.tiles import tile, untile
from rwkv_engine.ops.time_mixing_step import time_mixing_step
from rwkv_engine.ops.wkv4 import wkv4

__all__ = ["channel_mixing_step", "linear", "philox_uniform", "tile", "time_mixing_step", "untile", "wkv4"]
