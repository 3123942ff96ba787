"""Logits to tokens, tokens to more tokens."""

from rwkv_engine.generation.generate import generate_tokens
from rwkv_engine.generation.sampling import Sampler, SamplingParams

__all__ = ["Sampler", "SamplingParams", "generate_tokens"]
