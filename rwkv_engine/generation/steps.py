"""The steps of a scheduler: each reads a part of the prompts, and processes one token of every running text.

Where kernels are compiled for the CPU, neither the parts of a prompt nor the other texts of a step change a bit of a
result, see `ops.linear`; elsewhere results can differ by rounding.
"""

from __future__ import annotations

from collections import deque
from functools import partial

import torch
from torch import Tensor

from rwkv_engine.caching.state_cache import StateCache
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.running import Running
from rwkv_engine.generation.sampling_rows import sample_rows
from rwkv_engine.models import Model
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.runtime.ragged import read_texts


class Steps:
    """The requests that a scheduler has accepted, and the pool with the states of those that run.

    Only one thread at a time may use it.

    Attributes:
        waiting: requests without a slot: new ones, and those whose states were put aside.
        cache: the states after earlier prompts; None if there is no cache.
    """

    def __init__(self, model: Model, slots: int, chunk: int, budget: int, turn: int):
        """Creates the pool. The arguments are those of `Scheduler`."""
        self.waiting: deque[Request] = deque()
        self.cache: StateCache | None = None
        self._model, self._slots = model, slots
        self._chunk, self._budget, self._turn = chunk, budget, turn
        self._reading: list[Request] = []  # their prompts are being read; their states are not in slots
        self._running = Running(model, slots)
        self._turns: dict[Request, int] = {}  # the numbers of tokens at which running texts have had their turns

    def snapshot(self, request: Request) -> State:
        """A copy of a request's state after everything but `request.unread`.

        Raises:
            RequestError: a step failed half-way, so the state is lost.
        """
        if request in self._running:
            return self._running.state(request)
        if request.state is None and (request.tokens or not request.unread):
            raise RequestError(f"there is no state after this text, because generating it failed: {request.error}")
        return request.state or self._initial_state()

    @torch.inference_mode(False)  # the pool outlives the call, and is later modified in place
    @torch.no_grad()
    def step(self) -> None:
        """Performs one step. One that fails ends its requests with the error.

        Raises:
            BaseException: what is not an Exception, such as KeyboardInterrupt; the requests have ended as well.
        """
        try:
            self._admit()
            self._decode()
            self._read()
        except BaseException as error:
            is_own = isinstance(error, Exception)
            reason = error if is_own else RequestError(f"generation was interrupted: {type(error).__name__}")
            for request in [*self._reading, *self._running]:
                if request in self._running:
                    self._running.drop(request)  # whose state may include a part of a token
                    del self._turns[request]
                self.end(request, "error", reason)
            if not is_own:
                raise

    def _admit(self) -> None:
        """Fills free slots with waiting requests, for which paused texts and those that had their turn make room."""
        wanted = [request for request in self.waiting if not request.is_paused]
        lacking = len(wanted) - (self._slots - len(self._running) - len(self._reading))
        if lacking > 0:
            had_turns = [r for r in self._running if r.is_paused or len(r.tokens) >= self._turns[r]]
            for request in had_turns[:lacking]:
                self._put_aside(request)
                self.waiting.append(request)
        for request in wanted[: self._slots - len(self._running) - len(self._reading)]:
            if request.max_new_tokens == 0 and not request.wants_state:
                self.end(request, "length")
                continue
            self.waiting.remove(request)
            self._reading.append(request)
            if request.tokens or len(request.prompt) == 1:  # as `Engine.forward`, which decodes single tokens
                self._run(request)

    def _run(self, request: Request) -> None:
        """Gives a request a slot, which contains its state from now on."""
        self._running.add(request, request.state or self._initial_state())
        self._reading.remove(request)  # only now, so that an error of the line above ends it
        request.state = request.begin = None
        self._turns[request] = len(request.tokens) + self._turn

    def _put_aside(self, request: Request) -> None:
        """Takes a request's slot, and gives it its state."""
        request.state = self._running.remove(request)
        del self._turns[request]

    def _read(self) -> None:
        """Reads a part of the prompts, oldest first, and samples the first token of those that are read now."""
        is_watched = any(request.is_watched and not request.is_paused for request in self._running)
        left = self._budget if is_watched else self._chunk
        # Several samples of one prompt read it once.
        alike: dict[tuple[tuple[int, ...], int, str, bool], list[Request]] = {}
        for request in self._reading:
            key = request.prompt, id(request.begin), request.owner, request.uses_cache
            alike.setdefault(key, []).append(request)
        parts: list[Tensor] = []
        for group in list(alike.values())[:MOST_ROWS]:
            if left > 0:
                parts.append(self._next_part(group, left))
                left -= len(parts[-1])
        if not parts:
            return
        groups = list(alike.values())[: len(parts)]
        states = State.join([first.state or self._initial_state() for first, *_ in groups])
        # Not Engine.forward: a part of one token must be read as the others are.
        hidden, states = read_texts(self._model.read, parts, states)
        for i, (part, group) in enumerate(zip(parts, groups, strict=True)):
            state, unread = states.rows(slice(i, i + 1)).clone(), group[0].unread[len(part) :]
            n_read, edges = len(group[0].prompt) - len(unread), group[0].edges
            if n_read in edges[:1]:
                edges = edges[1:]
                if cache := self.cache:  # which another thread may replace
                    cache.keep(group[0].prompt[:n_read], group[0].owner, state)
            for request in group:
                request.state, request.unread, request.edges = state, unread, edges
        is_read = [i for i, group in enumerate(groups) if not group[0].unread]
        if not is_read:
            return
        logits = self._model.head(self._model.ln_out(torch.stack([hidden[i][-1] for i in is_read])))
        requests = [request for i in is_read for request in groups[i]]
        for request in requests:
            self._run(request)
        self._sample(requests, logits[[row for row, i in enumerate(is_read) for _ in groups[i]]])

    def _next_part(self, group: list[Request], most: int) -> Tensor:
        """What to read next of the prompt of some requests: up to `most` tokens, or up to where a state is kept."""
        first = group[0]
        # Nothing is read yet, and nothing was before the prompt.
        if first.state is None and first.uses_cache and (cache := self.cache):
            state, edges = cache.find(first.prompt, first.owner)
            n_cached = int(state.position) if state else 0
            for request in group:
                request.state, request.unread, request.edges = state, first.prompt[n_cached:], edges
                request.n_cached = n_cached
        n_read = len(first.prompt) - len(first.unread)
        ends = [edge - n_read for edge in first.edges[:1]]
        return torch.tensor(first.unread[: min([most, *ends])], dtype=torch.int64)

    def _decode(self) -> None:
        """Processes the last token of each running text that is not paused, and samples the next; also those after it
        that a draft has foreseen."""
        texts = [request for request in self._running if request.unread and not request.is_paused]
        for first in range(0, len(texts), MOST_ROWS):
            requests = texts[first : first + MOST_ROWS]
            if self._running.samples(requests):
                self._take_each(requests, *self._running.sample(requests))
                continue
            while requests:
                self._sample(requests, self._running.advance(requests))
                requests = [r for r in requests if r in self._running and not r.is_paused and self._running.is_ahead(r)]

    def _sample(self, requests: list[Request], logits: Tensor) -> None:
        self._take_each(requests, logits, sample_rows(logits, requests))

    def _take_each(self, requests: list[Request], logits: Tensor, ids: list[int]) -> None:
        """Adds a sampled token to each request; `logits`: (B, V), those that it was sampled from."""
        for request, row, token in zip(requests, logits, ids, strict=True):
            try:
                self._take(request, row, token)
            except Exception as error:  # of this request alone, as in its `accept`
                self.end(request, "error", error)

    def _take(self, request: Request, logits: Tensor, token: int) -> None:
        """Adds a sampled token to a request."""
        params = request.sampler.params
        if request.max_new_tokens == 0:  # only its prompt was to be read
            return self.end(request, "length")
        if token < 0:
            raise request.error or RequestError(
                "the model's logits are not finite (NaN or Inf); is the checkpoint damaged?"
            )
        if token in params.stop_tokens:
            return self.end(request, "stop")
        if params.logprobs is not None:
            request.logprobs += request.sampler.logprobs(logits.unsqueeze(0), [token])
        if request.drafts:
            request.drafts.add(token)
        request.unread = (token,)
        request.tokens.append(token)  # last, because other threads look at it
        is_going_on = request.accept(token)
        if request.wants_state:
            request.mark(partial(self.snapshot, request))
        if not is_going_on or request.is_complete:
            return self.end(request, "stop")
        if len(request.tokens) == request.max_new_tokens:
            return self.end(request, "length")

    def end(self, request: Request, reason: str, error: BaseException | None = None) -> None:
        """Ends a request, wherever it is."""
        if request in self._running:
            self._put_aside(request)
            self._keep_answer(request)
        elif request in self._reading:
            self._reading.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        request.error = error
        request.end()
        request.finish_reason = reason  # last, because other threads look at it

    def _keep_answer(self, request: Request) -> None:
        """Gives the cache the state after a text, from which the next turn of a conversation continues."""
        cache = self.cache if request.uses_cache else None
        if cache and cache.keeps_answers and request.is_whole and request.state is not None:
            text = [*request.prompt, *request.tokens]
            cache.keep(text[: len(text) - len(request.unread)], request.owner, request.state)

    def _initial_state(self) -> State:
        return State.initial(self._model.config).to(self._model.device_map.home)
