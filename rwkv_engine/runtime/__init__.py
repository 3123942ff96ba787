"""Loads checkpoints onto devices, and runs models: prefill, decoding, the state pool and CUDA graphs."""

from rwkv_engine.runtime.decoder import Decoder
from rwkv_engine.runtime.engine import Engine
from rwkv_engine.runtime.loader import load_model
from rwkv_engine.runtime.pool import StatePool

__all__ = ["Decoder", "Engine", "StatePool", "load_model"]
