"""What is on disk: checkpoints in every format, read lazily and checked."""

from rwkv_engine.checkpoints.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
