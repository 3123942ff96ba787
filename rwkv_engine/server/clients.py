"""What one client of a server may use, and uses."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus

from rwkv_engine.generation.request import Request
from rwkv_engine.server.errors import ApiError


class Client:
    """Whoever has a key.

    Tokens are paid in advance: those of the prompts, and the largest number of new ones, of which the rest is given
    back. A request may cost more than is left, but then the next one waits until the debt is paid.

    Attributes:
        name: stands for it in logs.
        most_texts: how many texts it may have at a time; None for no limit of its own.
        tokens_per_minute: how many tokens it may read and generate in a minute; None for no limit.
        texts: how many it has now.
    """

    def __init__(self, name: str = "", most_texts: int | None = None, tokens_per_minute: int | None = None):
        self.name = name
        self.most_texts = most_texts
        self.tokens_per_minute = tokens_per_minute
        self.texts = 0
        self._left = float(tokens_per_minute or 0)  # at the time that follows
        self._then = time.monotonic()

    def limit_as(self, other: Client) -> None:
        """Takes over the name and the limits of another one, and goes on with what it uses itself."""
        self.name, self.most_texts, self.tokens_per_minute = other.name, other.most_texts, other.tokens_per_minute

    @contextmanager
    def hold(self, texts: Sequence[Request]) -> Iterator[None]:
        """Counts texts for as long as the block runs, and pays for their tokens.

        A prompt counts for each of its samples.

        Raises:
            ApiError: it has too many, or no tokens are left (429).
        """
        self.require_tokens()
        most = sum(len(text.prompt) + text.max_new_tokens for text in texts)
        with self.counted(len(texts)):
            self.pay(most)
            try:
                yield
            finally:
                self.pay(sum(len(text.prompt) + len(text.tokens) for text in texts) - most)

    @contextmanager
    def counted(self, n: int) -> Iterator[None]:
        """Counts so many texts for as long as the block runs.

        Raises:
            ApiError: it has too many (429).
        """
        if self.most_texts is not None and self.texts + n > self.most_texts:
            raise _busy(f"this key has {self.texts} texts and may have {self.most_texts} at a time", 1)
        self.texts += n
        try:
            yield
        finally:
            self.texts -= n

    def require_tokens(self) -> None:
        """Checks that tokens are left.

        Raises:
            ApiError: none are (429).
        """
        if self.tokens_per_minute and (left := self._tokens()) <= 0:
            seconds = math.ceil((1 - left) * 60 / self.tokens_per_minute)
            raise _busy(f"this key may use {self.tokens_per_minute} tokens in a minute", seconds)

    def pay(self, tokens: int) -> None:
        """Takes tokens off what is left, or gives some back if the number is negative."""
        if self.tokens_per_minute:
            self._left, self._then = self._tokens() - tokens, time.monotonic()

    def _tokens(self) -> float:
        """The tokens that are left now."""
        assert self.tokens_per_minute
        earned = (time.monotonic() - self._then) * self.tokens_per_minute / 60
        return min(self.tokens_per_minute, self._left + earned)


def _busy(problem: str, seconds: int) -> ApiError:
    return ApiError(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"{problem}; try again later",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )
