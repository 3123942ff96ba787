"""Buffers that several threads share: one user at a time, on the host and on the streams of GPUs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from threading import Lock

import torch


class Turns:
    """Threads wait for one another; and since a GPU still works when a call returns, streams wait for streams."""

    def __init__(self, devices: Collection[torch.device]):
        """`devices`: where the buffers are; those that are not CUDA devices need no more than the lock."""
        self._lock = Lock()
        self._devices = sorted({device for device in devices if device.type == "cuda"}, key=str)
        self._done: dict[torch.device, torch.cuda.Event] = {}  # when the last user's work on a device is done

    @contextmanager
    def take(self) -> Iterator[None]:
        """Holds the buffers for the work that the body puts on the current streams."""
        with self._lock:
            for device, done in self._done.items():
                torch.cuda.current_stream(device).wait_event(done)
            try:
                yield
            finally:
                for device in self._devices:
                    self._done[device] = torch.cuda.current_stream(device).record_event()
