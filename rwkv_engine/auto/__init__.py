"""The classes of transformers, over this engine: change the import, keep the program."""

from rwkv_engine.auto.config import AutoConfig, RwkvConfig
from rwkv_engine.auto.model import AutoModelForCausalLM, RwkvForCausalLM

__all__ = ["AutoConfig", "AutoModelForCausalLM", "RwkvConfig", "RwkvForCausalLM"]
