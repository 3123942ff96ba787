"""The module's name in release 0.2; `core.rwkv4_layouts` is the place now."""

from rwkv_engine.core.rwkv4_layouts import from_layout, to_layout

__all__ = ["from_layout", "to_layout"]
