"""The types that describe a model: its sizes, its state, and on which devices and in which precision it runs."""

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.placement import Placement
from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.core.rwkv7 import Rwkv7Config
from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.core.state import State
from rwkv_engine.core.strategy import Strategy

__all__ = ["ModelConfig", "Placement", "Rwkv4Config", "Rwkv7Config", "Snapshot", "State", "Strategy"]
