"""Converts stop strings that name a special token to stop tokens, because special tokens have no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rwkv_engine.errors import RequestError
from rwkv_engine.generation.params import SamplingParams


def with_special_stops(params: SamplingParams, special_tokens: Mapping[str, int]) -> SamplingParams:
    """The parameters, with a stop token for each stop string that is the name of a special token.

    Args:
        params: the parameters.
        special_tokens: the ids of special tokens by name, see `Tokenizer.special_tokens`.

    Raises:
        RequestError: a stop string contains a special token and other text, which no generated text can match.
    """
    tokens = [special_tokens[text] for text in params.stop if text in special_tokens]
    for text in params.stop:
        inside = next((name for name in special_tokens if name in text), None)
        if inside and text not in special_tokens:
            raise RequestError(
                f"stop: got {text!r}, in which {inside!r} is a special token (id {special_tokens[inside]});"
                f" special tokens have no text, so no text can match; use the token alone, {inside!r}, or the text"
                " without it"
            )
    return replace(params, stop_tokens=(*params.stop_tokens, *tokens)) if tokens else params
