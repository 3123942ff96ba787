"""Sampling parameters, sampling from logits, and streams of generated tokens and text."""

from rwkv_engine.generation.asynchronous import AsyncTextStream
from rwkv_engine.generation.generate import TokenStream
from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.generation.params import SamplingParams
from rwkv_engine.generation.sampling import Sampler
from rwkv_engine.generation.text_request import TextRequest
from rwkv_engine.generation.text_stream import TextStream

__all__ = [
    "AsyncTextStream",
    "Logprob",
    "Sampler",
    "SamplingParams",
    "TextRequest",
    "TextStream",
    "TokenStream",
]
