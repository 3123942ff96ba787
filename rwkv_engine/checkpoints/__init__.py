"""Reads checkpoints of every supported format lazily, and checks them."""

from rwkv_engine.checkpoints.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
