"""Log-probabilities of a token."""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class Logprob:
    """Log-probabilities, in nats, of a sampled token, and of the most likely tokens in descending order.

    They are kept as numbers of the machine: as objects of Python, 20 pairs take four times the memory, and a server has
    those of all tokens that its clients have not read.

    Attributes:
        token: the id of the sampled token.
        logprob: its log-probability.
    """

    __slots__ = ("_ids", "_values", "logprob", "token")
    __match_args__ = ("token", "logprob", "top")

    token: int
    logprob: float
    _ids: array[int]
    _values: array[float]

    def __init__(self, token: int, logprob: float, top: Iterable[tuple[int, float]] = ()):
        """`top` are the ids of the most likely tokens and their log-probabilities."""
        pairs = list(top)
        object.__setattr__(self, "token", token)
        object.__setattr__(self, "logprob", logprob)
        object.__setattr__(self, "_ids", array("i", [other for other, _ in pairs]))
        object.__setattr__(self, "_values", array("d", [value for _, value in pairs]))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a Logprob does not change")

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """The ids of the most likely tokens, and their log-probabilities."""
        return tuple(zip(self._ids, self._values, strict=True))

    def __eq__(self, other: object) -> bool:
        return self._all == other._all if isinstance(other, Logprob) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._all)

    def __repr__(self) -> str:
        return f"Logprob(token={self.token!r}, logprob={self.logprob!r}, top={self.top!r})"

    def __reduce__(self) -> tuple[type[Logprob], tuple[int, float, tuple[tuple[int, float], ...]]]:
        return Logprob, self._all

    @property
    def _all(self) -> tuple[int, float, tuple[tuple[int, float], ...]]:
        return self.token, self.logprob, self.top
