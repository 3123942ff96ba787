"""Generates many texts at a time: requests join and leave between steps, and share each pass over the weights."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from numbers import Integral
from weakref import WeakKeyDictionary

import torch

from rwkv_engine.caching.state_cache import StateCache
from rwkv_engine.checks import require, require_ids
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.background import Background
from rwkv_engine.generation.interrupts import delayed_interrupts
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.steps import Steps
from rwkv_engine.models import Model
from rwkv_engine.runtime.decoder import most_rows
from rwkv_engine.runtime.engine import CHUNK, Engine

# The tokens of prompts that a step reads while texts are running. Products take as long for fewer than the 12 rows that
# AVX-512's registers hold, and a step for eight texts takes about twice as long with as many.
BUDGET = 12
# While other requests wait, a text gives its slot back after this many tokens.
TURN = 64


class Scheduler:
    """Runs requests on the slots of one pool of states.

    Its methods may be called from any thread. The thread that waits performs the steps, one at a time; once a second
    one has waited, `background` does, for all of them, so that only one thread has OpenMP workers. Further requests
    than there are slots wait; if they wait for long, the states of running texts are put aside in their favour.

    Attributes:
        background: performs the steps of requests for which no thread waits, or more than one.
    """

    @torch.inference_mode(False)  # the pool is later modified in place, perhaps outside of that mode
    def __init__(
        self,
        model: Model,
        slots: int | None = None,
        chunk: int = CHUNK,
        budget: int = BUDGET,
        turn: int = TURN,
        most_waiting: int | None = None,
        cache: StateCache | None = None,
    ):
        """Creates the pool.

        Args:
            model: a placed model.
            slots: the number of texts that run at a time, at least 1; None for as many as share a step of the model,
                which are 16, or 32 with packed weights on the CPU.
            chunk: the largest number of prompt tokens that a step reads.
            budget: the same while texts are running whose tokens somebody reads as they come.
            turn: the number of tokens after which a text makes room for a waiting request.
            most_waiting: the number of waiting requests at which `add` refuses further ones; None for no limit.
            cache: keeps the states after prompts; None for none.

        Raises:
            RequestError: a number is too small.
        """
        slots = most_rows(model) if slots is None else slots
        for name, value in (("slots", slots), ("chunk", chunk), ("budget", budget), ("turn", turn)):
            require(name, value, Integral, lambda n: n >= 1, "an integer >= 1")
        self._model, self._most_waiting, self._chunk = model, most_waiting, chunk
        self._steps = Steps(model, slots, chunk, budget, turn)
        self.cache = cache
        self.background = Background()
        self._stepping = threading.Lock()
        self._stepped = threading.Condition()
        self._stepper: int | None = None  # the thread that performs a step
        self._lock = threading.Lock()  # of what follows
        self._waiter: int | None = None  # the first thread that has waited
        self._is_shared = False  # whether others have, too
        self._added: deque[Request] = deque()
        self._aborted: deque[Request] = deque()

    @property
    def cache(self) -> StateCache | None:
        """Keeps the states after prompts that begin without a state. It may be replaced at any time."""
        return self._steps.cache

    @cache.setter
    def cache(self, cache: StateCache | None) -> None:
        require("state_cache", cache, (StateCache, type(None)), lambda _: True, "a StateCache, or None")
        if cache is not None:
            cache.attach(self._model, self._chunk)
        self._steps.cache = cache

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            RequestError: the queue is full, the request does not fit the model, or it was added before.
        """
        self.check(request)
        with self._lock:
            if request.is_added:
                raise RequestError("this request was added before, expected a new one: it describes one text")
            waiting = len(self._added) + len(self._steps.waiting)
            if self._most_waiting is not None and waiting >= self._most_waiting:
                raise RequestError(f"{waiting} requests are waiting, which is the limit; try again later")
            request.is_added = True
            self._added.append(request)

    def check(self, request: Request) -> None:
        """Checks a request as `add` does, without queueing it.

        Raises:
            RequestError: it does not fit the model.
        """
        config, params = self._model.config, request.sampler.params
        require_ids("prompt", request.prompt, config.n_vocab, "the model's vocabulary")
        if request.state is not None:
            request.state.check(config, self._model.fingerprint, 1)
        if params.logit_bias or params.banned_tokens:  # their ids are checked
            request.sampler.adjusted(
                torch.zeros(1, config.n_vocab, dtype=torch.float32, device=self._model.device_map.home)
            )

    def abort(self, request: Request) -> None:
        """Ends a request at the next step; one that has ended stays as it is."""
        # Without the lock: the garbage collector, which drops streams, may run while this thread holds it.
        if not request.finish_reason:
            self._aborted.append(request)

    def wait(self, is_enough: Callable[[], object]) -> None:
        """Performs steps, or waits for those of another thread, until a condition is met.

        A step that fails ends the requests that it was for with an error. Ctrl-C takes effect between two steps.

        Args:
            is_enough: tells whether it is met, from the attributes of requests. It is called after every step, and must
                become true once these requests have ended or paused.
        """
        self._require_outside()
        with self._lock:
            self._waiter = self._waiter or threading.get_ident()
            self._is_shared |= self._waiter != threading.get_ident()
        if not self._is_shared:
            self.background.make_room()
            self.perform(lambda: self._is_shared or is_enough())
        if not is_enough():
            self.background.wait(is_enough, self.perform)

    def perform(self, is_enough: Callable[[], object]) -> None:
        """As `wait`, in the one thread that performs the steps."""
        while not is_enough():
            if self._stepping.acquire(blocking=False):
                try:
                    self._stepper = threading.get_ident()
                    if not is_enough():
                        with delayed_interrupts():
                            self._take_orders()
                            self._steps.step()
                finally:
                    self._stepper = None
                    self._stepping.release()
                    with self._stepped:
                        self._stepped.notify_all()
            else:
                with self._stepped:
                    self._stepped.wait(timeout=0.01)  # a step that ended before this line notifies nobody

    def snapshot(self, request: Request) -> State:
        """A copy of a request's state after everything but `request.unread`.

        Raises:
            RequestError: a step failed half-way, so the state is lost.
        """
        self._require_outside()
        with self._stepping:
            return self._steps.snapshot(request)

    def _require_outside(self) -> None:
        """Checks that this thread is not in a step, whose end it would await for ever."""
        if self._stepper == threading.get_ident():
            raise RequestError(
                "the model is generating, and calls this function in the middle of a step (from allowed_tokens, for"
                " instance); it cannot generate another text here: do so before or afterwards"
            )

    def _take_orders(self) -> None:
        """Passes on what other threads have added and aborted."""
        # Before the others, so that none is aborted here and then begins.
        aborted = [self._aborted.popleft() for _ in range(len(self._aborted))]
        with self._lock:
            self._steps.waiting.extend(each for each in self._added if not each.finish_reason)  # or it was aborted
            self._added.clear()
        for request in aborted:
            if not request.finish_reason:
                self._steps.end(request, "aborted")


_making = threading.Lock()
_of_engines: WeakKeyDictionary[Engine, Scheduler] = WeakKeyDictionary()


def scheduler_of(engine: Engine) -> Scheduler:
    """The scheduler that all texts of an engine share, created at its first use."""
    with _making:
        if engine not in _of_engines:
            _of_engines[engine] = Scheduler(engine.model, chunk=engine.chunk)
        return _of_engines[engine]


def _forget_schedulers() -> None:
    """In a forked process, whose parent's other threads may have been inside of them."""
    global _making
    _making = threading.Lock()
    _of_engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_schedulers)
