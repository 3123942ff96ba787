"""The classes of transformers, over this engine: change the import, keep the program."""

from rwkv_engine.auto.config import AutoConfig, RwkvConfig
from rwkv_engine.auto.model import AutoModelForCausalLM, RwkvForCausalLM
from rwkv_engine.auto.streamer import TextIteratorStreamer, TextStreamer
from rwkv_engine.auto.tokenizer import AutoTokenizer

__all__ = [
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "RwkvConfig",
    "RwkvForCausalLM",
    "TextIteratorStreamer",
    "TextStreamer",
]
