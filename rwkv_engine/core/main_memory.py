"""The main memory that this process can still allocate."""

from __future__ import annotations

import resource
from contextlib import suppress


def free_main_memory() -> int | None:
    """The smaller of the system's available bytes and those that `ulimit -v` leaves this process; None if unknown."""
    known = [size for size in (_of_system(), within_limit()) if size is not None]
    return min(known) if known else None


def within_limit() -> int | None:
    """The bytes that a limit on this process's address space leaves; None without a limit, or if it is unknown."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError), open("/proc/self/statm") as statm:
            return max(0, limit - int(statm.read().split()[0]) * resource.getpagesize())
    return None


def _of_system() -> int | None:
    with suppress(OSError), open("/proc/meminfo") as meminfo:
        return 1024 * next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable"))
    return None
