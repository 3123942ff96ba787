"""A checkpoint becomes a placed model, a placed model reads tokens."""

from rwkv_engine.runtime.engine import Engine
from rwkv_engine.runtime.loader import load_model

__all__ = ["Engine", "load_model"]
