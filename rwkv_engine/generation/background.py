"""Performs a scheduler's steps in a thread of its own, for callers that must not wait, such as event loops."""

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
# `Scheduler.wait`: performs steps until a condition is met.
Wait = Callable[[Callable[[], object]], None]


class Background:
    """The requests that are watched, and the thread that performs their steps.

    The thread rests when none are left, and ends with this object. It is not ended sooner, because a thread's first
    passes are slow: the system begins with OpenMP's new workers on the processor of the thread that they share work
    with.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of what follows
        self._receivers: dict[TextRequest, tuple[Receive, bool]] = {}
        self._is_running = self._has_workers = False
        self._orders: SimpleQueue[Callable[[], object] | None] | None = None  # of the thread, once there is one

    def watch(self, request: TextRequest, receive: Receive, pieces: bool, wait: Wait) -> None:
        """Reports on a request until it has ended.

        Args:
            request: one that a scheduler has accepted, and that never pauses.
            receive: is called in the thread, and must return at once; a RuntimeError, which a closed event loop raises,
                is ignored.
            pieces: whether to report pieces as they come, and not only the end.
            wait: that scheduler's method.
        """
        end_workers()  # those of the calling thread, which leaves the steps to another one
        with self._lock:
            self._receivers[request] = receive, pieces
            if not self._orders:
                self._orders = SimpleQueue()
                threading.Thread(target=_obey, args=[self._orders], name="rwkv_engine-steps", daemon=True).start()
                weakref.finalize(self, self._orders.put, None)
            if not self._is_running:
                self._is_running = self._has_workers = True
                self._orders.put(partial(self._run, wait))

    def make_room(self) -> None:
        """Ends the OpenMP workers of the thread if it rests: another one is about to compute."""
        with self._lock:
            if self._orders and self._has_workers and not self._is_running:
                self._has_workers = False
                self._orders.put(end_workers)

    def _run(self, wait: Wait) -> None:
        try:
            while self._report():
                wait(self._has_news)
        except BaseException as error:  # in this thread nobody else would see it
            self._fail(error)

    def _has_news(self) -> bool:
        with self._lock:
            return any(r.finish_reason or (pieces and r.pieces) for r, (_, pieces) in self._receivers.items())

    def _report(self) -> bool:
        """Passes on what there is, and returns whether requests are left."""
        with self._lock:
            for request, (receive, pieces) in list(self._receivers.items()):
                ended = request.finish_reason is not None  # before its pieces are looked at
                if ended or (pieces and request.pieces):
                    _tell(receive, request, ended)
                if ended:
                    del self._receivers[request]
            self._is_running = bool(self._receivers)
            return self._is_running

    def _fail(self, error: BaseException) -> None:
        """Ends all requests with the error that ended the thread."""
        with self._lock:
            for request, (receive, _) in self._receivers.items():
                request.error = request.error or error
                _tell(receive, request, True)
            self._receivers.clear()
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
