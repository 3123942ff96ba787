"""The texts that have a slot of a pool: computes what follows their last tokens, and what follows drafts.

A draft's tokens are rows of the same step as the token before them: each row begins from the state after the row before
it and has a slot of its own. So the state after every token of a draft is there, and a draft that is wrong from some
token on is dropped by choosing a slot.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_engine.core.state import State
from rwkv_engine.generation.drafts import Drafts
from rwkv_engine.generation.prompts import Part
from rwkv_engine.generation.recorded import Recorded, is_recordable
from rwkv_engine.generation.request import Request
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
    """Requests with slots. Between steps, a slot contains the state before the request's unread token.

    Attributes:
        most_rows: the number of texts that share a step of the model.
        chains: whether such a step can process several tokens of one text.
    """

    def __init__(self, model: Model, slots: int):
        """Creates a pool for `slots` requests at a time, which run or are read, and for the drafts of a step."""
        self._decoder = Decoder(model, slots + MOST_ROWS)
        self.most_rows, self.chains = self._decoder.most_rows, self._decoder.chains
        self._recorded = Recorded(self._decoder)
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
        self._recorded.release(request)
        del self._ahead[request]
        self._decoder.pool.free([self._slots.pop(request)])

    def state(self, request: Request) -> State:
        """A copy of a request's state."""
        return self._decoder.pool.read([self._slots[request]])

    def is_ahead(self, request: Request) -> bool:
        """Whether a draft contained the request's unread token, so that its logits are there."""
        ahead = self._ahead[request]
        return bool(ahead) and ahead[0].token == request.unread[0]

    def room_for(self, parts: int) -> int:
        """How many of some parts of prompts have room in the pool, where paused texts make room for them."""
        if self._decoder.pool.n_free < parts:
            for other in self._slots:
                if other.is_paused:
                    self._drop_ahead(other)
        return min(parts, self._decoder.pool.n_free)

    def advance(self, requests: Sequence[Request], parts: Sequence[Part] = ()) -> Tensor:
        """Makes the unread token of each request a part of its state, and returns the logits (B, V) after it.

        The same step reads parts of prompts that have room in the pool.
        Requests that are not ahead, of which there are at most `most_rows`, share a step of the model.
        """
        if not parts and not any(self._ahead[request] or self._may_draft(request) for request in requests):
            return self._one_token_each(requests)
        behind = [request for request in requests if not self.is_ahead(request)]
        if behind or parts:
            begin = time.perf_counter()
            rows = self._compute(behind, parts)
            if not parts:
                self._cost.add(len(behind), rows - len(behind), time.perf_counter() - begin)
        done = [self._ahead[request].popleft() for request in requests]
        for request, row in zip(requests, done, strict=True):
            if row.slot != self._slots[request]:
                self._decoder.pool.free([self._slots[request]])
                self._slots[request] = row.slot
            request.unread = ()
        if all(row.logits is done[0].logits and row.row == i for i, row in enumerate(done)):
            return done[0].logits[: len(done)] if done else torch.empty(0, dtype=torch.float32)
        return torch.stack([row.logits[row.row] for row in done])

    def samples(self, requests: Sequence[Request]) -> bool:
        """Whether `sample` can do what `advance` and sampling behind it do."""
        return self._decoder.records and all(is_recordable(request) for request in requests)

    def sample(self, requests: Sequence[Request]) -> tuple[Tensor, list[int]]:
        """Makes the unread token of each of up to 16 requests a part of its state, and samples the next.

        Returns:
            Logits (B, V), which the next step overwrites, and B ids, see `Decoder.sample`.
        """
        logits, ids = self._recorded.sample(requests, [self._slots[request] for request in requests])
        for request in requests:
            request.unread = ()
        return logits, ids

    def _one_token_each(self, requests: Sequence[Request]) -> Tensor:
        """`advance` where nothing is ahead, drafted or read: the usual step, in which every call of Python counts."""
        begin = time.perf_counter()
        tokens = torch.tensor([request.unread[0] for request in requests], dtype=torch.int64)
        logits = self._decoder.step(tokens, [self._slots[request] for request in requests])
        self._cost.add(len(requests), 0, time.perf_counter() - begin)
        for request in requests:
            request.unread = ()
        return logits

    def _compute(self, requests: Sequence[Request], parts: Sequence[Part]) -> int:
        """Processes the unread token of each request, drafts where they pay, and parts of prompts.

        Returns:
            The number of tokens of requests and drafts.
        """
        rows = list[tuple[Request, int, int, int]]()  # request, token, its slot, and the slot it begins from
        pool, taken = self._decoder.pool, [slot for part in parts for slot in self._decoder.pool.take(part.state)]
        room = min(MOST_ROWS, self.most_rows - sum(len(part.tokens) for part in parts)) - len(requests)
        for request in requests:
            self._drop_ahead(request)
            slot = self._slots[request]
            rows.append((request, request.unread[0], slot, slot))
            draft = self._draft(request, room, len(requests))
            room -= len(draft)
            for token, own in zip(draft, pool.reserve(len(draft)), strict=False):  # few may be free
                rows.append((request, token, own, rows[-1][2]))
        # A part's tokens follow one another in one slot, and the logits after its last one are wanted.
        reading = [(token, slot) for part, slot in zip(parts, taken, strict=True) for token in part.tokens]
        ends = [len(rows) + n - 1 for n in accumulate(len(part.tokens) for part in parts)]
        tokens = [*(token for _, token, _, _ in rows), *(token for token, _ in reading)]
        slots = [*(slot for _, _, slot, _ in rows), *(slot for _, slot in reading)]
        before = [*(origin for _, _, _, origin in rows), *(slot for _, slot in reading)]
        wanted = [*range(len(rows)), *ends] if parts else None
        try:
            ids = torch.tensor(tokens, dtype=torch.int64)
            logits = self._decoder.step(ids, slots, before if parts or slots != before else None, wanted)
            for i, (part, slot) in enumerate(zip(parts, taken, strict=True), len(rows)):
                part.state, part.logits = pool.read([slot]), logits[i]
        except BaseException:
            pool.free([slot for _, _, slot, origin in rows if slot != origin])
            raise
        finally:
            pool.free(taken)
        for i, (request, token, slot, _) in enumerate(rows):
            self._ahead[request].append(_Row(token, slot, logits, i))
        return len(rows)

    def _may_draft(self, request: Request) -> bool:
        """Whether a step may process tokens that have not been sampled yet."""
        return self.chains and request.sampler.params.drafts > 0

    def _draft(self, request: Request, room: int, running: int) -> list[int]:
        """The tokens that may follow a request's unread one, and are worth a row each."""
        room = min(room, request.sampler.params.drafts, request.max_new_tokens - len(request.tokens) - 1)
        if room <= 0 or not self._may_draft(request):
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
