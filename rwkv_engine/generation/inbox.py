"""From the thread that performs the steps to the tasks of an event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from typing import Any


class Inbox:
    """What threads put into the queues of one event loop, which is woken once for all that a step brings.

    Waking it costs the waking thread a system call, and both threads a switch of the interpreter's lock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = weakref.ref(loop)  # it is the key under which this object is kept
        self._items: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._is_woken = False

    def put(self, queue: asyncio.Queue[Any], item: object) -> None:
        """Has the loop put an item into a queue without a limit; may be called in any thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        self._items.append((queue, item))
        if not self._is_woken and (loop := self._loop()):
            self._is_woken = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # first, because what is added after the last look must wake the loop again
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)


_inboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Inbox] = weakref.WeakKeyDictionary()


def inbox_of(loop: asyncio.AbstractEventLoop) -> Inbox:
    """The inbox that all tasks of a loop share; to be called in that loop."""
    inbox = _inboxes.get(loop)
    if inbox is None:
        inbox = _inboxes[loop] = Inbox(loop)
    return inbox
