"""The prompts that are being read: which parts of them a step reads, and what is known after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rwkv_engine.caching.state_cache import StateCache
from rwkv_engine.core.state import State
from rwkv_engine.generation.request import Request
from rwkv_engine.models import Model
from rwkv_engine.ops.linear import MOST_ROWS

# The largest parts that are read together with running texts, in tokens. Longer ones are read in a pass of their own,
# which pays off where a processor multiplies large matrices faster.
_SHORT = 64


@dataclass
class Part:
    """A part of a prompt that a step reads.

    Attributes:
        requests: those with this prompt.
        tokens: the ids.
        state: the state before the tokens; once they were read, the one after them.
        logits: (V,), those after the last token; None until it was read, and where they are not needed.
    """

    requests: list[Request]
    tokens: Sequence[int]
    state: State
    logits: Tensor | None = None

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends with this part, once that was given to `Prompts.keep`."""
        return not self.requests[0].unread


class Prompts:
    """The prompts that are being read; their states are not in slots.

    Attributes:
        requests: those with these prompts, oldest first.
        cache: the states after earlier prompts; None if there is no cache.
    """

    def __init__(self, model: Model):
        """`model`: what reads them."""
        self.requests: list[Request] = []
        self.cache: StateCache | None = None
        self._config, self._home = model.config, model.device_map.home

    def next(self, limit: int, room: int, places: int) -> tuple[list[Part], list[Part]]:
        """What to read next, oldest first.

        Args:
            limit: the largest number of tokens.
            room: the largest number of tokens that can be read together with running texts, where each token is a row
                of their step, so that the weights are read once for all of them.
            places: the largest number of prompts for which that holds.

        Returns:
            The parts that are read together with running texts, and up to 16 others.
        """
        joining, apart = list[Part](), list[Part]()
        for group in self._groups():
            if limit <= 0:
                break
            self._find(group)
            joins = places > 0 and min(limit, len(group[0].unread)) <= _SHORT
            parts = joining if joins else apart
            most = min(limit, room) if joins else limit
            if most and len(parts) < (places if joins else MOST_ROWS):
                tokens = self._part(group[0], most)
                parts.append(Part(group, tokens, group[0].state or self.initial_state()))
                limit -= len(tokens)
                room -= len(tokens) if joins else 0
        return joining, apart

    def keep(self, part: Part) -> None:
        """Gives requests the state after a part that was read, and the cache, where it wants it."""
        first = part.requests[0]
        unread, edges = first.unread[len(part.tokens) :], first.edges
        n_read = len(first.prompt) - len(unread)
        if n_read in edges[:1]:
            edges = edges[1:]
            if cache := self.cache:  # which another thread may replace
                cache.keep(first.prompt[:n_read], first.owner, part.state)
        for request in part.requests:
            request.state, request.unread, request.edges = part.state, unread, edges

    @property
    def n_unread(self) -> int:
        """The tokens that are left to be read."""
        return sum(len(group[0].unread) for group in self._groups())

    def initial_state(self) -> State:
        """The state before the first token of a text."""
        return State.initial(self._config).to(self._home)

    def _groups(self) -> list[list[Request]]:
        """The requests with each prompt: several samples of one prompt read it once."""
        alike: dict[tuple[tuple[int, ...], int, str, bool], list[Request]] = {}
        for request in self.requests:
            key = request.prompt, id(request.begin), request.owner, request.uses_cache
            alike.setdefault(key, []).append(request)
        return list(alike.values())

    def _find(self, group: list[Request]) -> None:
        """Asks the cache for a state after the beginning of a prompt of which nothing is read yet."""
        first = group[0]
        if first.state is None and first.uses_cache and (cache := self.cache):  # nothing was before it, either
            state, edges = cache.find(first.prompt, first.owner)
            n_cached = int(state.position) if state else 0
            for request in group:
                request.state, request.unread, request.edges = state, first.prompt[n_cached:], edges
                request.n_cached = n_cached

    def _part(self, request: Request, most: int) -> Sequence[int]:
        """What to read next of a prompt: up to `most` tokens, or up to where a state is kept."""
        n_read = len(request.prompt) - len(request.unread)
        ends = [edge - n_read for edge in request.edges[:1]]
        return request.unread[: min([most, *ends])]
