"""Nouns: what a model's numbers are, where it runs, what it remembers."""

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.placement import Placement
from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.core.state import State
from rwkv_engine.core.strategy import Strategy

__all__ = ["ModelConfig", "Placement", "Rwkv4Config", "State", "Strategy"]
