"""Performs a scheduler's steps in a thread of its own, for callers that must not wait, such as event loops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from rwkv_engine.generation.text_request import TextRequest


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

    The thread is started when there is something to watch, and ends with the last request.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of what follows
        self._receivers: dict[TextRequest, tuple[Receive, bool]] = {}
        self._is_running = False

    def watch(self, request: TextRequest, receive: Receive, pieces: bool, wait: Wait) -> None:
        """Reports on a request until it has ended.

        Args:
            request: one that a scheduler has accepted, and that never pauses.
            receive: is called in the thread, and must return at once; a RuntimeError, which a closed event loop raises,
                is ignored.
            pieces: whether to report pieces as they come, and not only the end.
            wait: that scheduler's method.
        """
        with self._lock:
            self._receivers[request] = receive, pieces
            if not self._is_running:
                threading.Thread(target=self._run, args=[wait], name="rwkv_engine-steps", daemon=True).start()
                self._is_running = True

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


def _tell(receive: Receive, request: TextRequest, ended: bool) -> None:
    pieces = tuple(request.pieces.popleft() for _ in range(len(request.pieces)))
    with suppress(RuntimeError):  # its event loop is closed, which has aborted the request
        receive(News(request, pieces, ended))
