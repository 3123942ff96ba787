"""Performs a scheduler's steps in a thread of its own, for event loops and for several threads."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

from rwkv_engine.generation.text_request import TextRequest
from rwkv_engine.native.workers import end_workers


class News(NamedTuple):
    """What happened to a request: further pieces of its text, and whether it has ended."""

    request: TextRequest
    pieces: tuple[str, ...]
    ended: bool


Receive = Callable[[News], object]
# Performs a scheduler's steps until a condition is met.
Perform = Callable[[Callable[[], object]], None]


class Waiter:
    """A thread that waits for a condition.

    Attributes:
        is_enough: whether it is met.
        is_over: set when it is, or when the thread that performs the steps has failed.
        error: with which that one failed.
    """

    def __init__(self, is_enough: Callable[[], object]):
        self.is_enough = is_enough
        self.is_over = threading.Event()
        self.error: BaseException | None = None


class Background:
    """The requests that are watched, the threads that wait, and the thread that performs the steps.

    That thread rests when nobody waits, and ends with this object. It is not ended sooner, because a thread's first
    passes are slow: the system begins with OpenMP's new workers on the processor of the thread that they share work
    with.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of what follows
        self._receivers: dict[TextRequest, tuple[Receive, bool]] = {}
        self._waiters: set[Waiter] = set()
        self._is_running = self._has_workers = False
        self._orders: SimpleQueue[Callable[[], object] | None] | None = None  # of the thread, once there is one

    def watch(self, request: TextRequest, receive: Receive, pieces: bool, perform: Perform) -> None:
        """Reports on a request until it has ended.

        Args:
            request: one that a scheduler has accepted, and that never pauses.
            receive: is called in the thread, and must return at once; a RuntimeError, which a closed event loop raises,
                is ignored.
            pieces: whether to report pieces as they come, and not only the end.
            perform: performs that scheduler's steps.
        """
        end_workers()  # those of the calling thread, which leaves the steps to another one
        with self._lock:
            self._receivers[request] = receive, pieces
            self._begin(perform)

    def wait(self, is_enough: Callable[[], object], perform: Perform) -> None:
        """Returns when a condition is met, which is checked after every step, in the thread that performs them.

        Raises:
            BaseException: that with which the thread failed.
        """
        end_workers()
        waiter = Waiter(is_enough)
        try:
            with self._lock:
                self._waiters.add(waiter)
                self._begin(perform)
            waiter.is_over.wait()
        finally:
            with self._lock:
                self._waiters.discard(waiter)  # if Ctrl-C ended the wait
        if waiter.error:
            raise waiter.error

    def _begin(self, perform: Perform) -> None:
        """Has the thread work, unless it does so; with the lock."""
        if not self._orders:
            self._orders = SimpleQueue()
            threading.Thread(target=_obey, args=[self._orders], name="rwkv_engine-steps", daemon=True).start()
            weakref.finalize(self, self._orders.put, None)
        if not self._is_running:
            self._is_running = self._has_workers = True
            self._orders.put(partial(self._run, perform))

    def make_room(self) -> None:
        """Ends the OpenMP workers of the thread if it rests: another one is about to compute."""
        with self._lock:
            if self._orders and self._has_workers and not self._is_running:
                self._has_workers = False
                self._orders.put(end_workers)

    def _run(self, perform: Perform) -> None:
        try:
            while self._report():
                perform(self._has_news)
        except BaseException as error:  # in this thread nobody else would see it
            self._fail(error)

    def _has_news(self) -> bool:
        with self._lock:
            return (
                any(r.finish_reason or (pieces and r.pieces) for r, (_, pieces) in self._receivers.items())
                or any(waiter.is_enough() for waiter in self._waiters)
                or not (self._receivers or self._waiters)  # Ctrl-C ended the last wait
            )

    def _report(self) -> bool:
        """Passes on what there is, and returns whether somebody still waits."""
        with self._lock:
            for request, (receive, pieces) in list(self._receivers.items()):
                ended = request.finish_reason is not None  # before its pieces are looked at
                if ended or (pieces and request.pieces):
                    _tell(receive, request, ended)
                if ended:
                    del self._receivers[request]
            for waiter in [waiter for waiter in self._waiters if waiter.is_enough()]:
                self._waiters.remove(waiter)
                waiter.is_over.set()
            self._is_running = bool(self._receivers or self._waiters)
            return self._is_running

    def _fail(self, error: BaseException) -> None:
        """Ends all requests and waits with the error that ended the work."""
        with self._lock:
            for request, (receive, _) in self._receivers.items():
                request.error = request.error or error
                _tell(receive, request, True)
            for waiter in self._waiters:
                waiter.error = error
                waiter.is_over.set()
            self._receivers.clear()
            self._waiters.clear()
            self._is_running = False


def _obey(orders: SimpleQueue[Callable[[], object] | None]) -> None:
    """What the thread does, which keeps neither a model nor a request alive while it rests."""
    while order := orders.get():
        order()
        del order


def _tell(receive: Receive, request: TextRequest, ended: bool) -> None:
    pieces = tuple(request.pieces.popleft() for _ in range(len(request.pieces)))
    with suppress(RuntimeError):  # its event loop is closed, which has aborted the request
        receive(News(request, pieces, ended))
