"""Keeps imports of release 0.2 working; the module is now named `core.rwkv4_layouts`."""

from rwkv_engine.core.rwkv4_layouts import from_layout, to_layout

__all__ = ["from_layout", "to_layout"]
