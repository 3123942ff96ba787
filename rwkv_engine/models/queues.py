"""Queues of work on a device, and the events that order them: what copies that run beside kernels need.

`CudaQueue` is a CUDA stream. Tests have queues without a GPU, which run copies in any order that events allow.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Queue(Protocol):
    """Work that a device does in the order in which it was submitted. Submitting does not wait for it."""

    def record(self) -> Any:
        """An event that happens when all work that was submitted so far is done; `synchronize` waits for it."""

    def wait(self, event: Any) -> None:
        """Work that is submitted from now on begins after the event."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copies `source` to `target`, of the same shape and dtype; one of them may be in page-locked main memory."""


class Queues(NamedTuple):
    """The two queues of a device.

    Attributes:
        compute: the one that kernels are submitted to.
        copies: another one, whose copies run at the same time.
    """

    compute: Queue
    copies: Queue


class CudaQueue:
    """A CUDA stream as a `Queue`."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None = None):
        """`stream`: a stream of the device; None stands for the one that is current at each call."""
        self._device, self._fixed = device, stream

    @property
    def _stream(self) -> torch.cuda.Stream:
        return self._fixed or torch.cuda.current_stream(self._device)

    def record(self) -> torch.cuda.Event:
        """See `Queue.record`. Every call makes an event, as the CUDA graphs of torch do when they fork streams."""
        return self._stream.record_event()

    def wait(self, event: torch.cuda.Event) -> None:
        """See `Queue.wait`."""
        self._stream.wait_event(event)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `Queue.copy`."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)


def cuda_queues(device: torch.device) -> Queues:
    """The current stream of a GPU, and a new one for copies."""
    return Queues(CudaQueue(device), CudaQueue(device, torch.cuda.Stream(device)))
