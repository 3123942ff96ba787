"""The models, one module for each RWKV version."""

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.core.rwkv7 import Rwkv7Config
from rwkv_engine.models.block import Block
from rwkv_engine.models.model import Model
from rwkv_engine.models.rwkv4 import Rwkv4
from rwkv_engine.models.rwkv7 import Rwkv7

# The model class for each config class. A new version registers here and in `core.architectures.CONFIGS`.
MODELS: dict[type[ModelConfig], type[Model]] = {Rwkv4Config: Rwkv4, Rwkv7Config: Rwkv7}

__all__ = ["MODELS", "Block", "Model", "Rwkv4", "Rwkv7"]
