"""Classes with transformers' names and interface that run on this engine: only the import line changes."""

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
