"""The module's name in release 0.2; `convert.pack` is the place now."""

from rwkv_engine.convert.pack import pack, quantize

__all__ = ["pack", "quantize"]
