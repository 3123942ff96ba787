"""The texts that have a slot of a pool: computes what follows their last tokens, and what follows drafts.

A draft's tokens are rows of the same step as the token before them: each row begins from the state after the row before
it and has a slot of its own. So the state after every token of a draft is there, and a draft that is wrong from some
token on is dropped by choosing a slot.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_engine.core.state import State
from rwkv_engine.generation.drafts import Drafts
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.sampling_rows import is_plain, row_sampling
from rwkv_engine.generation.step_cost import StepCost
from rwkv_engine.models import Model
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.runtime.decoder import Decoder


class _Row(NamedTuple):
    """A token that has been processed, perhaps in vain: the slot of the state after it, and its row of the logits."""

    token: int
    slot: int
    logits: Tensor  # (B, V), those of its step
    row: int


class Running:
    """Requests with slots. Between steps, a slot contains the state before the request's unread token."""

    def __init__(self, model: Model, slots: int):
        """Creates a pool for `slots` requests at a time, and for the drafts of a step."""
        self._decoder = Decoder(model, slots + MOST_ROWS)
        self._slots: dict[Request, int] = {}
        self._ahead: dict[Request, deque[_Row]] = {}  # what was processed after the slot's state
        self._cost = StepCost()

    def __contains__(self, request: Request) -> bool:
        return request in self._slots

    def __iter__(self) -> Iterator[Request]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, request: Request, state: State) -> None:
        """Gives a request a slot that contains a state."""
        if not self._decoder.pool.n_free:  # paused texts have them, for what was processed ahead
            for other in self._slots:
                self._drop_ahead(other)
        [self._slots[request]] = self._decoder.pool.take(state)
        self._ahead[request] = deque()

    def remove(self, request: Request) -> State:
        """Takes a request's slot, and returns its state."""
        state = self.state(request)
        self.drop(request)
        return state

    def drop(self, request: Request) -> None:
        """Takes a request's slot, and forgets its state."""
        self._drop_ahead(request)
        del self._ahead[request]
        self._decoder.pool.free([self._slots.pop(request)])

    def state(self, request: Request) -> State:
        """A copy of a request's state."""
        return self._decoder.pool.read([self._slots[request]])

    def is_ahead(self, request: Request) -> bool:
        """Whether a draft contained the request's unread token, so that its logits are there."""
        ahead = self._ahead[request]
        return bool(ahead) and ahead[0].token == request.unread[0]

    def advance(self, requests: Sequence[Request]) -> Tensor:
        """Makes the unread token of each request a part of its state, and returns the logits (B, V) after it.

        Requests that are not ahead, of which there are at most 16, share a step of the model.
        """
        if behind := [request for request in requests if not self.is_ahead(request)]:
            begin = time.perf_counter()
            rows = self._compute(behind)
            self._cost.add(len(behind), rows - len(behind), time.perf_counter() - begin)
        done = [self._ahead[request].popleft() for request in requests]
        for request, row in zip(requests, done, strict=True):
            if row.slot != self._slots[request]:
                self._decoder.pool.free([self._slots[request]])
                self._slots[request] = row.slot
            request.unread = ()
        step = done[0].logits
        if len(step) == len(done) and all(row.logits is step and row.row == i for i, row in enumerate(done)):
            return step
        return torch.stack([row.logits[row.row] for row in done])

    def samples(self, requests: Sequence[Request]) -> bool:
        """Whether `sample` can do what `advance` and sampling behind it do."""
        return self._decoder.records and all(is_plain(request) for request in requests)

    def sample(self, requests: Sequence[Request]) -> tuple[Tensor, list[int]]:
        """Makes the unread token of each of up to 16 requests a part of its state, and samples the next.

        Returns:
            Logits (B, V), which the next step overwrites, and B ids, see `Decoder.sample`.
        """
        tokens, slots = [request.unread[0] for request in requests], [self._slots[request] for request in requests]
        logits, ids = self._decoder.sample(tokens, slots, [row_sampling(request) for request in requests])
        for request in requests:
            request.unread = ()
        return logits, ids

    def _compute(self, requests: Sequence[Request]) -> int:
        """Processes the unread token of each request, and drafts where they pay; returns how many tokens that were."""
        rows = list[tuple[Request, int, int, int]]()  # request, token, its slot, and the slot it begins from
        room = MOST_ROWS - len(requests)
        for request in requests:
            self._drop_ahead(request)
            slot = self._slots[request]
            rows.append((request, request.unread[0], slot, slot))
            draft = self._draft(request, room, len(requests))
            room -= len(draft)
            for token, own in zip(draft, self._decoder.pool.reserve(len(draft)), strict=False):  # few may be free
                rows.append((request, token, own, rows[-1][2]))
        owners, tokens, slots, before = zip(*rows, strict=True)
        try:
            ids = torch.tensor(tokens, dtype=torch.int64)
            logits = self._decoder.step(ids, slots, before if slots != before else None)
        except BaseException:
            self._decoder.pool.free([slot for _, _, slot, origin in rows if slot != origin])
            raise
        for i, (request, token, slot) in enumerate(zip(owners, tokens, slots, strict=True)):
            self._ahead[request].append(_Row(token, slot, logits, i))
        return len(rows)

    def _draft(self, request: Request, room: int, running: int) -> list[int]:
        """The tokens that may follow a request's unread one, and are worth a row each."""
        room = min(room, request.sampler.params.drafts, request.max_new_tokens - len(request.tokens) - 1)
        if room <= 0 or not self._decoder.chains:
            return []
        if request.drafts is None:
            request.drafts = Drafts([*request.prompt, *request.tokens])
        tokens, chances = request.drafts.guess(room)
        return tokens[: self._cost.best_draft(running, chances)]

    def _drop_ahead(self, request: Request) -> None:
        """Forgets what was processed after the slot's state."""
        ahead, slot = self._ahead[request], self._slots[request]
        self._decoder.pool.free([row.slot for row in ahead if row.slot != slot])
        ahead.clear()
