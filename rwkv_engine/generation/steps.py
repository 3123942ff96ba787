"""The steps of a scheduler: each reads a part of the prompts, and processes one token of every running text.

Where kernels are compiled for the CPU, neither the parts of a prompt nor the other texts of a step change a bit of a
result, see `ops.linear`; elsewhere results can differ by rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rwkv_engine.caching.state_cache import StateCache
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.prompts import Part, Prompts
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.running import Running
from rwkv_engine.generation.sampling_rows import sample_rows
from rwkv_engine.models import Model
from rwkv_engine.native import cpu_kernels, ways
from rwkv_engine.runtime.ragged import read_texts


class Steps:
    """The requests that a scheduler has accepted, and the pool with the states of those that run.

    Only one thread at a time may use it.

    Attributes:
        waiting: requests without a slot: new ones, and those whose states were put aside.
    """

    def __init__(self, model: Model, slots: int, chunk: int, budget: int, turn: int):
        """Creates the pool. The arguments are those of `Scheduler`."""
        self.waiting: deque[Request] = deque()
        self._model, self._slots = model, slots
        self._chunk, self._budget, self._turn = chunk, budget, turn
        self._prompts = Prompts(model)
        self._running = Running(model, slots)
        self._reads_in_steps = model.steps_as_it_reads and self._running.chains
        # Tiles of AMX multiply many rows faster than a step does, so there only few tokens are read in steps.
        self._reads_fast = ways.int8_way(cpu_kernels.status().level) == "amx"
        self._turns: dict[Request, int] = {}  # the numbers of tokens at which running texts have had their turns

    @property
    def cache(self) -> StateCache | None:
        """The states after earlier prompts; None if there is no cache."""
        return self._prompts.cache

    @cache.setter
    def cache(self, cache: StateCache | None) -> None:
        self._prompts.cache = cache

    def snapshot(self, request: Request) -> State:
        """A copy of a request's state after everything but `request.unread`.

        Raises:
            RequestError: a step failed half-way, so the state is lost.
        """
        if request in self._running:
            return self._running.state(request)
        if request.state is None and (request.tokens or not request.unread):
            raise RequestError(f"there is no state after this text, because generating it failed: {request.error}")
        return request.state or self._prompts.initial_state()

    @torch.inference_mode(False)  # the pool outlives the call, and is later modified in place
    @torch.no_grad()
    def step(self) -> None:
        """Performs one step. One that fails ends its requests with the error.

        Raises:
            BaseException: what is not an Exception, such as KeyboardInterrupt; the requests have ended as well.
        """
        try:
            self._admit()
            self._read_and_decode()
        except BaseException as error:
            is_own = isinstance(error, Exception)
            reason = error if is_own else RequestError(f"generation was interrupted: {type(error).__name__}")
            for request in [*self._prompts.requests, *self._running]:
                if request in self._running:
                    self._running.drop(request)  # whose state may include a part of a token
                    del self._turns[request]
                self.end(request, "error", reason)
            if not is_own:
                raise

    def _admit(self) -> None:
        """Fills free slots with waiting requests, for which paused texts and those that had their turn make room."""
        wanted = [request for request in self.waiting if not request.is_paused]
        lacking = len(wanted) - (self._slots - len(self._running) - len(self._prompts.requests))
        if lacking > 0:
            had_turns = [r for r in self._running if r.is_paused or len(r.tokens) >= self._turns[r]]
            for request in had_turns[:lacking]:
                self._put_aside(request)
                self.waiting.append(request)
        for request in wanted[: self._slots - len(self._running) - len(self._prompts.requests)]:
            if request.max_new_tokens == 0 and not request.wants_state:
                self.end(request, "length")
                continue
            self.waiting.remove(request)
            self._prompts.requests.append(request)
            if request.tokens or len(request.prompt) == 1:  # as `Engine.forward`, which decodes single tokens
                self._run(request)

    def _run(self, request: Request) -> None:
        """Gives a request a slot, which contains its state from now on."""
        self._running.add(request, request.state or self._prompts.initial_state())
        self._prompts.requests.remove(request)  # only now, so that an error of the line above ends it
        request.state = request.begin = None
        self._turns[request] = len(request.tokens) + self._turn

    def _put_aside(self, request: Request) -> None:
        """Takes a request's slot, and gives it its state."""
        request.state = self._running.remove(request)
        del self._turns[request]

    def _read_and_decode(self) -> None:
        """Reads a part of the prompts, and processes the last token of each running text that is not paused."""
        is_watched = any(request.is_watched and not request.is_paused for request in self._running)
        limit = self._budget if is_watched else self._chunk
        texts = [request for request in self._running if request.unread and not request.is_paused]
        at_once = most = self._running.most_rows
        places = 0
        if self._reads_in_steps and (not self._reads_fast or min(limit, self._prompts.n_unread) <= most):
            places = self._running.room_for(len(self._prompts.requests))
        if places:
            at_once -= min(self._budget, most // 2)  # so that there is room for prompts
        n_first = min(len(texts), at_once)
        joining, apart = self._prompts.next(limit, most - n_first, places)
        self._decode(texts[:n_first], joining)
        for first in range(n_first, len(texts), most):
            self._decode(texts[first : first + most], [])
        if apart:
            self._read(apart)

    def _decode(self, requests: list[Request], parts: list[Part]) -> None:
        """Processes the last token of some texts, and samples the next; also those after it that a draft has foreseen.
        Reads parts of prompts in the same step."""
        if requests and not parts and self._running.samples(requests):
            self._take_each(requests, *self._running.sample(requests))
            return
        reading = parts
        while requests or reading:
            logits = self._running.advance(requests, reading)
            if requests:
                self._sample(requests, logits)
            reading = []
            requests = [r for r in requests if r in self._running and not r.is_paused and self._running.is_ahead(r)]
        self._begin(parts)

    def _read(self, parts: list[Part]) -> None:
        """Reads parts of prompts in a pass of their own."""
        # Not Engine.forward: a part of one token must be read as the others are.
        tokens = [torch.tensor(part.tokens, dtype=torch.int64) for part in parts]
        hidden, states = read_texts(self._model.read, tokens, State.join([part.state for part in parts]))
        ends = [i for i, part in enumerate(parts) if len(part.tokens) == len(part.requests[0].unread)]
        logits = self._model.head(self._model.ln_out(torch.stack([hidden[i][-1] for i in ends]))) if ends else ()
        for i, part in enumerate(parts):
            part.state = states.rows(slice(i, i + 1)).clone()
        for i, row in zip(ends, logits, strict=True):
            parts[i].logits = row
        self._begin(parts)

    def _begin(self, parts: list[Part]) -> None:
        """Samples the first tokens of the requests whose prompts have been read."""
        for part in parts:
            self._prompts.keep(part)
        ended = [(request, part.logits) for part in parts if part.is_last for request in part.requests]
        for request, _ in ended:
            self._run(request)
        if ended:
            requests, rows = zip(*ended, strict=True)
            self._sample(requests, torch.stack(rows))

    def _sample(self, requests: Sequence[Request], logits: Tensor) -> None:
        self._take_each(requests, logits, sample_rows(logits, requests))

    def _take_each(self, requests: Sequence[Request], logits: Tensor, ids: list[int]) -> None:
        """Adds a sampled token to each request; `logits`: (B, V), those that it was sampled from."""
        for row, (request, token) in enumerate(zip(requests, ids, strict=True)):
            try:
                self._take(request, logits, row, token)
            except Exception as error:  # of this request alone, as in its `accept`
                self.end(request, "error", error)

    def _take(self, request: Request, logits: Tensor, row: int, token: int) -> None:
        """Adds to a request a token that was sampled from a row of the logits."""
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
            request.logprobs += request.sampler.logprobs(logits[row : row + 1], [token])
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
        elif request in self._prompts.requests:
            self._prompts.requests.remove(request)
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
