"""Prompt in, tokens out, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch

from rwkv_engine.core.state import State
from rwkv_engine.generation.sampling import Sampler, SamplingParams, require
from rwkv_engine.runtime.engine import Engine


def generate_tokens(
    engine: Engine,
    prompt: Sequence[int],
    params: SamplingParams,
    max_new_tokens: int,
    state: State | None = None,
) -> Iterator[int]:
    """Reads the prompt, then yields tokens until a stop token or until there are `max_new_tokens`.

    Arguments are checked at the call, the prompt is read when the first token is asked for.

    Args:
        prompt: at least one id.
        params: how tokens are chosen; stop tokens are not yielded.
        max_new_tokens: at least 0.
        state: what came before the prompt; None for nothing.

    Raises:
        RequestError: an empty prompt, a negative count, or what `Engine.forward` refuses.
    """
    require("max_new_tokens", max_new_tokens, Integral, lambda n: n >= 0, "an integer >= 0")
    return _generate(engine, prompt, Sampler(params), max_new_tokens, state)


def _generate(
    engine: Engine, prompt: Sequence[int], sampler: Sampler, max_new_tokens: int, state: State | None
) -> Iterator[int]:
    logits, state = engine.forward(torch.tensor([list(prompt)], dtype=torch.int64), state)
    for i in range(max_new_tokens):
        [token] = sampler.sample(logits, state.position.tolist(), [0])
        if token in sampler.params.stop_tokens:
            return
        yield token
        if i + 1 < max_new_tokens:
            logits, state = engine.forward(torch.tensor([[token]]), state)
