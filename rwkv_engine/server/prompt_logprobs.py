"""The log-probabilities of the tokens of a prompt, which `echo` together with `logprobs` reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from threading import Event

import torch

from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.runtime.engine import Engine
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.service import Service
from rwkv_engine.server.texts import ServedText
from rwkv_engine.server.threads import in_thread

# Tokens whose logits are in memory at a time; with a vocabulary of 65536 they take 34 MB.
ROWS = 128


class PromptLogprobs:
    """Those of the prompts of a request, of which each is read once, whatever the number of its samples."""

    def __init__(self, service: Service, texts: Sequence[ServedText], n_top: int):
        """Checks the size of what is to be reported.

        Args:
            service: the server.
            texts: one for each prompt.
            n_top: how many of the most likely tokens to report.

        Raises:
            ApiError: the prompts are too long together, or a text goes on from a state, after which the first token's
                is not known (400).
        """
        if any(text.state is not None for text in texts):
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                "echo: with logprobs, got a text that goes on from a state or a session; leave out echo, so that the"
                " log-probabilities of new tokens are reported only",
                "echo",
                "unsupported_parameter",
            )
        self._service, self._n_top = service, n_top
        self._prompts = [text.prompt for text in texts]
        total, most = sum(map(len, self._prompts)), service.settings.most_prompt_tokens
        if total > most:
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"prompt: got {total} tokens together, expected at most {most} with echo and logprobs",
                "prompt",
                "context_length_exceeded",
            )

    async def read(self) -> list[list[Logprob]]:
        """Reads the prompts in a thread, which ends early when this is cancelled; see `logprobs_of`."""
        if not self._prompts:
            return []
        has_ended = Event()
        engine = self._service.model.engine
        try:
            async with self._service.alone:
                return [await in_thread(logprobs_of, engine, p, self._n_top, has_ended) for p in self._prompts]
        finally:
            has_ended.set()


def logprobs_of(engine: Engine, ids: Sequence[int], n_top: int, has_ended: Event) -> list[Logprob]:
    """The log-probabilities of the tokens of one text, as the model predicts each from those before it.

    Args:
        engine: runs the model.
        ids: the text, at least one token.
        n_top: how many of the most likely tokens to report.
        has_ended: whether nobody waits for them any more.

    Returns:
        One for each token. That of the first one is NaN, and has no other tokens, because nothing is before it.

    Raises:
        RequestError: the logits are not finite, or nobody waits any more.
    """
    found = [Logprob(ids[0], math.nan)]
    state: State | None = None
    for begin in range(0, len(ids) - 1, ROWS):
        if has_ended.is_set():
            raise RequestError("nobody waits for these log-probabilities any more")
        inputs, targets = ids[begin : begin + ROWS], ids[begin + 1 : begin + ROWS + 1]
        read = torch.tensor([inputs[: len(targets)]], dtype=torch.int64)
        logits, state = engine.forward(read, state, full_output=True)
        if not logits.isfinite().all():
            raise RequestError("the model's logits are not finite (NaN or Inf); is the checkpoint damaged?")
        logp = torch.log_softmax(logits[0].double(), dim=-1)
        own = logp.gather(-1, torch.tensor(targets, device=logp.device).unsqueeze(-1)).squeeze(-1).tolist()
        values, others = (part.tolist() for part in logp.topk(min(n_top, logp.shape[-1]), dim=-1))
        for token, logprob, row, row_ids in zip(targets, own, values, others, strict=True):
            found.append(Logprob(token, logprob, zip(row_ids, row, strict=True)))
    return found
