"""Nouns: what a model's numbers are, where it runs, what it remembers."""

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.state import State
from rwkv_engine.core.strategy import Placement, Strategy

__all__ = ["ModelConfig", "Placement", "State", "Strategy"]
