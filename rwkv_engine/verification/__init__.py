"""Checks of a checkpoint: its format and sizes, whether it runs correctly on this machine, and its activations."""

from rwkv_engine.verification.check import Check
from rwkv_engine.verification.run import verify

__all__ = ["Check", "verify"]
