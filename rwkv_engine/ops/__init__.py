"""Operators: one file each, with its equation, schema and torch reference. Compiled kernels take over when loaded."""

from rwkv_engine.ops.wkv4 import wkv4

__all__ = ["wkv4"]
