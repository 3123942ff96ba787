"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # the exit code of a program that Ctrl-C has ended


@contextmanager
def interrupt_exits_at_once() -> Iterator[None]:
    """In this block Ctrl-C ends the process, with exit code 130 and no traceback.

    It is for imports: nothing has to be cleaned up yet, and code that is being imported (torch, NumPy) may catch a
    KeyboardInterrupt and go on. A signal that is ignored, as in background jobs, stays ignored.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
