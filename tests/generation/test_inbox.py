"""What threads report to an event loop arrives whole and in order, with few wake-ups."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import deque

import pytest

from rwkv_engine.generation.inbox import inbox_of


def test_what_a_step_brings_wakes_the_loop_once(monkeypatch):
    async def run():
        loop = asyncio.get_running_loop()
        woken = []
        call = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *given: (woken.append(given), call(*given)))
        queues = [asyncio.Queue() for _ in range(16)]
        for step in range(3):
            for queue in queues:
                inbox_of(loop).put(queue, step)
            assert len(woken) == step + 1
            assert [await queue.get() for queue in queues] == [step] * 16

    asyncio.run(run())


def test_nothing_is_lost_whenever_threads_report():
    n = 5000

    async def run():
        queues = [asyncio.Queue() for _ in range(3)]
        inbox = inbox_of(asyncio.get_running_loop())
        threads = [
            threading.Thread(target=lambda q=queue: [inbox.put(q, i) for i in range(n)], daemon=True)
            for queue in queues
        ]
        for thread in threads:
            thread.start()
        for queue in queues:
            assert [await asyncio.wait_for(queue.get(), 10) for _ in range(n)] == list(range(n))

    asyncio.run(run())


def test_what_comes_after_the_last_look_wakes_the_loop_again():
    async def run():
        queue, inbox = asyncio.Queue(), inbox_of(asyncio.get_running_loop())
        late = ["late"]

        class Items(deque):
            def __len__(self):
                n = super().__len__()
                if n == 0 and late:  # as if another thread ran between this look and the next line
                    inbox.put(queue, late.pop())
                return n

        inbox._items = Items()
        inbox.put(queue, "first")
        assert [await asyncio.wait_for(queue.get(), 10) for _ in range(2)] == ["first", "late"]

    asyncio.run(run())


def test_a_loop_is_not_kept():
    async def run():
        return inbox_of(asyncio.get_running_loop()), weakref.ref(asyncio.get_running_loop())

    inbox, loop = asyncio.run(run())
    if loop():
        with pytest.raises(RuntimeError, match="closed"):
            inbox.put(asyncio.Queue(), 1)
    gc.collect()
    assert loop() is None
