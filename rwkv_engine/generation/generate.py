"""Generates tokens after a prompt, one at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import torch

from rwkv_engine.core.state import State
from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.sampling import Sampler
from rwkv_engine.generation.scheduler import scheduler_of
from rwkv_engine.runtime.engine import Engine


class TokenStream(Iterator[int]):
    """Generates tokens after a prompt, until a stop token or until there are `max_new_tokens`.

    Arguments are checked when the stream is created; the prompt is prefilled when the first token is requested. Streams
    that are read at the same time, in several threads, share each pass over the weights.

    Attributes:
        engine: runs the model.
        request: the parameters, and what was generated so far.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        sampler: Sampler,
        max_new_tokens: int,
        state: State | None = None,
        sample: int = 0,
        owner: str = "",
    ):
        """Checks the arguments; those besides `engine`, and the errors, are those of `Request`."""
        self.engine = engine
        self.request = Request(prompt, sampler, max_new_tokens, state, sample, owner)
        self._scheduler = scheduler_of(engine)
        self._is_added = False
        self._after: tuple[int, State] | None = None  # a number of tokens, and the state after them

    def __next__(self) -> int:
        request, n = self.request, len(self.request.tokens)
        if request.error:
            raise request.error
        if request.finish_reason or n == request.max_new_tokens:
            raise StopIteration
        request.wanted = n + 1
        if not self._is_added:
            self._scheduler.add(request)
            self._is_added = True
            weakref.finalize(self, self._scheduler.abort, request).atexit = False
        self._scheduler.wait(lambda: len(request.tokens) > n or request.finish_reason)
        if len(request.tokens) > n:
            return request.tokens[n]
        if request.error:
            raise request.error
        raise StopIteration

    @property
    def stopped(self) -> bool:
        """Whether a stop token has ended the stream. That token is neither yielded nor processed."""
        return self.request.finish_reason == "stop"

    @property
    def logprob(self) -> Logprob | None:
        """The log-probabilities of the last token, if the parameters ask for them."""
        return self.request.logprobs[-1] if self.request.logprobs else None

    def before_last(self) -> State:
        """The state after everything but the last token; a copy.

        Raises:
            RequestError: the model failed while it processed the last token.
        """
        return self._scheduler.snapshot(self.request)

    def read_all(self) -> State:
        """The state after the prompt and every generated token. Errors as for `before_last`."""
        n = len(self.request.tokens)
        if self._after is None or self._after[0] != n:
            state = self.before_last()
            if self.request.unread:
                _, state = self.engine.forward(torch.tensor([self.request.unread], dtype=torch.int64), state)
            self._after = n, state
        return self._after[1]
