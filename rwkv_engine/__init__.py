"""The engine for RWKV-4 language models. Importing it compiles nothing."""

from rwkv_engine._version import __version__
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import ModelConfig, Rwkv4Config, State, Strategy
from rwkv_engine.errors import (
    CheckpointError,
    ExtensionError,
    RequestError,
    RwkvError,
    StrategyError,
    TokenizerError,
)
from rwkv_engine.pipeline import RWKV

__all__ = [
    "RWKV",
    "Checkpoint",
    "CheckpointError",
    "ExtensionError",
    "ModelConfig",
    "RequestError",
    "Rwkv4Config",
    "RwkvError",
    "State",
    "Strategy",
    "StrategyError",
    "TokenizerError",
    "__version__",
]
