"""How many texts a server has taken on: those that run, and those that wait for a slot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from rwkv_engine.server.errors import ApiError


class Places:
    """The places for texts, of which a request gets as many as it needs, or none.

    Attributes:
        most: the number of places.
        taken: how many are in use.
    """

    def __init__(self, most: int):
        self.most = most
        self.taken = 0

    @contextmanager
    def hold(self, n: int) -> Iterator[None]:
        """Takes places for as long as the block runs.

        Raises:
            ApiError: not enough are free (429).
        """
        if self.taken + n > self.most:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"the server is busy with {self.taken} texts and takes on at most {self.most}; try again later",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        self.taken += n
        try:
            yield
        finally:
            self.taken -= n
