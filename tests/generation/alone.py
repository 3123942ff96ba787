"""Generates one text by itself, without a scheduler: what every text must be in company too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from rwkv_engine.core import State
from rwkv_engine.generation import Logprob, Sampler, SamplingParams
from rwkv_engine.generation.sampling import History
from rwkv_engine.runtime import Engine


class Alone(NamedTuple):
    tokens: list[int]
    logprobs: list[Logprob]
    finish_reason: str
    state: State  # after the prompt and all tokens


def alone(
    engine: Engine,
    prompt: Sequence[int],
    params: SamplingParams,
    max_new_tokens: int,
    state: State | None = None,
    sample: int = 0,
) -> Alone:
    sampler, history, tokens, logprobs = Sampler(params), None, [], []
    logits, state = engine.forward(torch.tensor([list(prompt)]), state)
    if params.penalizes:
        history = History(1, logits.shape[-1], logits.device)
    while len(tokens) < max_new_tokens:
        [token] = sampler.sample(logits, state.position, [sample], history)
        if token in params.stop_tokens:
            return Alone(tokens, logprobs, "stop", state)
        if params.logprobs is not None:
            logprobs += sampler.logprobs(logits, [token])
        tokens.append(token)
        logits, state = engine.forward(torch.tensor([[token]]), state)
    return Alone(tokens, logprobs, "length", state)
