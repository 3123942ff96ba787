"""The engine for RWKV language models. Importing it compiles nothing, and loads torch when a name is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rwkv_engine._version import __version__

if TYPE_CHECKING:
    from rwkv_engine.caching import StateCache
    from rwkv_engine.checkpoints import Checkpoint
    from rwkv_engine.core import ModelConfig, Rwkv4Config, State, Strategy
    from rwkv_engine.errors import (
        CheckpointError,
        ExtensionError,
        OutOfMemoryError,
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
    "OutOfMemoryError",
    "RequestError",
    "Rwkv4Config",
    "RwkvError",
    "State",
    "StateCache",
    "Strategy",
    "StrategyError",
    "TokenizerError",
    "__version__",
]

# Where the public names are defined; the command line must be able to show its help without waiting for torch.
_MODULES = {
    "RWKV": "pipeline",
    "Checkpoint": "checkpoints",
    "ModelConfig": "core",
    "Rwkv4Config": "core",
    "State": "core",
    "StateCache": "caching",
    "Strategy": "core",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"rwkv_engine.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
