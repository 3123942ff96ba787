"""Queues of work without a GPU: what `models.queues` describes, with copies that take their time.

`Late` runs what is submitted to the compute queue at once, and copies at a random time before an event forces them. It
also records what was submitted. `play` runs a record in a random order that the events allow, and checks the buffers.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_engine.models.queues import Queues
from rwkv_engine.models.streaming import Streaming
from rwkv_engine.runtime.streamed import Device


class Event(NamedTuple):
    """Happens when a queue has done what is before position `at`."""

    queue: LateQueue
    at: int

    def synchronize(self) -> None:
        self.queue.run(self.at)


class Work(NamedTuple):
    """One entry of a queue: "wait" for an event, "copy" to a buffer, or a "kernel" that reads a buffer."""

    kind: str
    event: Event | None = None
    buffer: int = 0  # its address
    content: Any = None  # what a copy brings and a kernel expects
    target: Tensor | None = None
    source: Tensor | None = None


@dataclass(eq=False)
class LateQueue:
    late: Late
    submitted: list[Work] = field(default_factory=list)
    done: int = 0

    def record(self) -> Event:
        self.late.idle()
        return Event(self, len(self.submitted))

    def wait(self, event: Event) -> None:
        self.submit(Work("wait", event))

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert (target.shape, target.dtype) == (source.shape, source.dtype)
        self.submit(Work("copy", None, target.data_ptr(), source.data_ptr(), target, source))

    def submit(self, work: Work) -> None:
        self.submitted.append(work)
        self.late.idle()

    def run(self, until: int) -> None:
        while self.done < until:
            work = self.submitted[self.done]
            if work.event:
                work.event.synchronize()
            if work.kind == "copy":
                work.target.copy_(work.source)
            self.done += 1


class Late:
    """The two queues of a device."""

    def __init__(self, seed: int = 0):
        self._random = random.Random(seed)
        self.compute, self.copies = LateQueue(self), LateQueue(self)

    def idle(self) -> None:
        """Time passes: compute does all there is, which Python has done already; copies do some of their work."""
        self.compute.run(len(self.compute.submitted))
        waiting = len(self.copies.submitted) - self.copies.done
        if waiting and self._random.random() < 0.3:
            self.copies.run(self.copies.done + self._random.randint(1, waiting))

    def device(self) -> Device:
        """For `load_model`, with ordinary memory."""
        queues = Queues(self.compute, self.copies)
        return Device(lambda device: queues, lambda nbytes, _: torch.zeros(nbytes, dtype=torch.uint8))

    def watch(self, streaming: Streaming) -> None:
        """Records the work of each layer as a kernel."""
        layer = streaming.layer

        @contextmanager
        def watched(index: int):
            with layer(index):
                if index in streaming.layers:
                    host = streaming.host_of(index)
                    address = streaming.buffer_of(index).data_ptr()
                    self.compute.submit(Work("kernel", None, address, host.data_ptr()))
                yield

        streaming.layer = watched


class Hazard(AssertionError):
    """A buffer was read before its copy had ended, or overwritten while it was in use."""


def play(late: Late, rng: random.Random, hurry: float) -> int:
    """Runs what was submitted in one order that the events allow; `hurry` is the copies' share of the turns.

    A copy or a kernel begins in one turn and ends in a later one. Returns the number of turns.
    """
    queues = [late.compute, late.copies]
    done = {id(queue): 0 for queue in queues}
    running: dict[int, Work] = {}
    contents: dict[int, Any] = {}
    turns = 0
    while any(done[id(queue)] < len(queue.submitted) for queue in queues):
        turns += 1
        for queue in queues[:: -1 if rng.random() < hurry else 1]:  # the other one only if this one has to wait
            if _advance(queue, done, running, contents):
                break
        else:
            raise Hazard("both queues wait for each other")
    return turns


def _advance(queue: LateQueue, done: dict[int, int], running: dict[int, Work], contents: dict[int, Any]) -> bool:
    if done[id(queue)] == len(queue.submitted):
        return False
    work = queue.submitted[done[id(queue)]]
    if work.kind == "wait":
        if done[id(work.event.queue)] < work.event.at:
            return False
    elif id(queue) not in running:
        if any(other.buffer == work.buffer for other in running.values()):
            raise Hazard(f"{work.kind} while the buffer is in use")
        if work.kind == "kernel" and contents.get(work.buffer) != work.content:
            raise Hazard("a kernel found another layer in its buffer")
        running[id(queue)] = work
        contents[work.buffer] = work.content
        return True
    else:
        del running[id(queue)]
    done[id(queue)] += 1
    return True
