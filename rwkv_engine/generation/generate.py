"""Generates tokens after a prompt, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch

from rwkv_engine.checks import require
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.sampling import History, Logprob, Sampler
from rwkv_engine.runtime.engine import Engine


class TokenStream(Iterator[int]):
    """Generates tokens after a prompt, until a stop token or until there are `max_new_tokens`.

    Arguments are checked when the stream is created; the prompt is prefilled when the first token is requested.

    Attributes:
        stopped: whether a stop token has ended the stream. That token is neither yielded nor processed.
        state: the state after the tokens processed so far. The last token is processed when the next one is requested,
            or by `read_all`.
        logprobs: the log-probabilities of the last token, if the parameters ask for them.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        sampler: Sampler,
        max_new_tokens: int,
        state: State | None = None,
        sample: int = 0,
    ):
        """Checks the arguments.

        Args:
            engine: runs the model.
            prompt: the ids of the prompt, at least one.
            sampler: samples the tokens.
            max_new_tokens: the largest number of tokens, at least 0.
            state: the state after the text before the prompt; None if there is none.
            sample: the index of this text among the samples of one prompt; with one seed, each gives a different text.

        Raises:
            RequestError: the prompt is empty, or a value is out of range.
        """
        require("max_new_tokens", max_new_tokens, Integral, lambda n: n >= 0, "an integer >= 0")
        require("sample", sample, Integral, lambda n: 0 <= n < 2**64, "an integer in [0, 2**64)")
        require("state", state, (State, type(None)), lambda _: True, "a State that a call returned, or None")
        if not prompt:
            raise RequestError("the prompt has no tokens, expected at least one")
        self.engine = engine
        self.sampler = sampler
        self.stopped = False
        self.logprobs: Logprob | None = None
        self.state = state
        self._unread = list(prompt)  # the prompt, later the last token
        self._logits = torch.empty(1, 0, dtype=torch.float32)  # after what has been read
        self._left = max_new_tokens
        self.sample = sample
        self._history: History | None = None

    def __next__(self) -> int:
        if self._left == 0 or self.stopped:
            raise StopIteration
        state, logits = self.read_all(), self._logits
        if self.sampler.params.penalizes and self._history is None:
            self._history = History(1, logits.shape[-1], logits.device)
        [token] = self.sampler.sample(logits, state.position, [self.sample], self._history)
        if token in self.sampler.params.stop_tokens:
            self.stopped = True
            raise StopIteration
        if self.sampler.params.logprobs is not None:
            [self.logprobs] = self.sampler.logprobs(logits, [token])
        self._unread = [token]
        self._left -= 1
        return token

    def read_all(self) -> State:
        """The state after the prompt and every generated token."""
        if self._unread:
            self._logits, self.state = self.engine.forward(torch.tensor([self._unread], dtype=torch.int64), self.state)
            self._unread = []
        assert self.state is not None
        return self.state
