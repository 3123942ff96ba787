"""Is a checkpoint sound? What it is, whether it runs here as it should, and what its numbers look like."""

from rwkv_engine.verification.check import Check
from rwkv_engine.verification.run import verify

__all__ = ["Check", "verify"]
