"""What a benchmark measures with: a stopwatch, the bandwidth of memory, and a watch on a process's memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Thread

import torch

from rwkv_engine.storage import huge_pages
from rwkv_engine.verification.memory import peak_memory, resident_memory

Clock = Callable[[], float]

SIZE = 1 << 30  # bytes that a reading of the bandwidth sums, far more than any cache
READINGS = 3
PERIOD = 0.02  # seconds between two looks at a process's memory


def seconds(run: Callable[[], object], clock: Clock = time.perf_counter, device: str = "cpu") -> float:
    """The seconds that `run` takes; if `device` contains "cuda", until the GPU has finished all of its work."""
    waits = "cuda" in device
    if waits:
        torch.cuda.synchronize()
    started = clock()
    run()
    if waits:
        torch.cuda.synchronize()
    return clock() - started


class ReadBandwidth:
    """The read bandwidth of a device's memory, by torch's sum of 1 GiB of float32 (of 2 GiB on a GPU).

    On the CPU all of torch's threads take part, and the numbers lie in huge pages where the system grants them. A loop
    in C with AVX-512 and four streams is not faster: 27 to 30 GB/s where this one reaches 29 to 32 (28 to 31 with 4 KiB
    pages).
    """

    def __init__(self, device: str = "cpu", clock: Clock = time.perf_counter, size: int = SIZE):
        self.device = device
        self.size = size if device == "cpu" else 2 * size
        self._clock = clock
        self._numbers = (
            huge_pages.empty((self.size // 4,), torch.float32).zero_()
            if device == "cpu"
            else torch.zeros(self.size // 4, dtype=torch.float32, device=device)
        )
        self.measure()  # maps the pages and starts the threads

    def measure(self) -> float:
        """Bytes per second, the median of a few readings; takes a tenth of a second on a small machine."""
        read: Callable[[], object] = self._numbers.sum
        return self.size / sorted(seconds(read, self._clock, self.device) for _ in range(READINGS))[READINGS // 2]


class MemoryWatch:
    """The peak memory of this process: its own, and pages of mapped files, which the system may take back.

    Between `start` and `stop` a thread looks at both every 20 ms: the system records only the peak of their sum.
    """

    def __init__(self) -> None:
        self._own = self._file = 0
        self._stopped = Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._stopped.clear()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, so that it does not disturb what is timed."""
        if self._thread:
            self._stopped.set()
            self._thread.join()
            self._thread = None
            self._look()  # a long call into C may have kept the thread from looking

    def peaks(self) -> dict[str, int] | None:
        """Peaks in bytes: of `own`, of `file`, and of their sum, `together`; None outside Linux."""
        self._look()
        together = peak_memory()
        return {"own": self._own, "file": self._file, "together": together} if together else None

    def _look(self) -> None:
        if found := resident_memory():
            self._own, self._file = max(self._own, found[0]), max(self._file, found[1])

    def _watch(self) -> None:
        self._look()
        while not self._stopped.wait(PERIOD):
            self._look()
