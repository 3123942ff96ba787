"""How fast memory is read at best, so that an engine's share of it can be told."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from rwkv_engine.benchmark.stopwatch import Clock, seconds

SIZE = 1 << 30  # bytes, far more than any cache
TIMES = 3


class ReadBandwidth:
    """Of the CPU: torch's sum of 1 GiB of float32 on all of its threads; of a GPU: the same of 2 GiB.

    On the CPU the numbers lie in huge pages where the system grants them. A loop in C with AVX-512 and four streams is
    no faster: 27 to 30 GB/s on the first machine, this one 29 to 32 (4 KiB pages: 28 to 31).
    """

    def __init__(self, device: str = "cpu", clock: Clock = time.perf_counter, size: int = SIZE):
        self.device = device
        self.size = size if device == "cpu" else 2 * size
        self._clock = clock
        self._numbers = (
            _huge_pages(self.size)
            if device == "cpu"
            else torch.zeros(self.size // 4, dtype=torch.float32, device=device)
        )
        self.measure()  # pages are mapped, threads are started

    def measure(self) -> float:
        """Bytes per second, the median of a few readings: a tenth of a second on a small machine."""
        read: Callable[[], object] = self._numbers.sum
        return self.size / sorted(seconds(read, self._clock, self.device) for _ in range(TIMES))[TIMES // 2]


def _huge_pages(size: int) -> Tensor:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if hasattr(mmap, "MAP_PRIVATE") else None
    if memory is None:
        return torch.zeros(size // 4, dtype=torch.float32)
    with suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).zero_()
