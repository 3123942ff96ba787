"""Mutual exclusion for buffers that several threads share, on the host and on the streams of GPUs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from threading import RLock

import torch


class Turns:
    """A lock for buffers on GPUs.

    A lock alone is not enough: when a call returns, the GPU may still be working on the buffers, so the next user's
    stream waits for the last user's work.
    """

    def __init__(self, devices: Collection[torch.device]):
        """`devices`: the devices of the buffers; devices other than CUDA need only the lock."""
        self._lock = RLock()
        self._is_taken = False
        self._devices = sorted({device for device in devices if device.type == "cuda"}, key=str)
        self._done: dict[torch.device, torch.cuda.Event] = {}  # marks the end of the last user's work

    @contextmanager
    def take(self) -> Iterator[None]:
        """Reserves the buffers for the work that the block submits to the current streams.

        A block inside another one of the same thread changes nothing, so it may be captured as a CUDA graph, which must
        not wait for events from outside.
        """
        with self._lock:
            if self._is_taken:
                yield
                return
            self._is_taken = True
            try:
                for device, done in self._done.items():
                    torch.cuda.current_stream(device).wait_event(done)
                yield
            finally:
                self._is_taken = False
                for device in self._devices:
                    self._done[device] = torch.cuda.current_stream(device).record_event()
