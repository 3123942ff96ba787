"""How much main memory this process can still take."""

from __future__ import annotations

import resource
from contextlib import suppress


def free_main_memory() -> int | None:
    """Bytes that the system has left, or that a limit on the process (`ulimit -v`) leaves; None if unknown."""
    known = [size for size in (_of_system(), within_limit()) if size is not None]
    return min(known) if known else None


def within_limit() -> int | None:
    """Bytes that a limit on this process's address space leaves; None if there is no such limit, or nothing tells."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError), open("/proc/self/statm") as statm:
            return max(0, limit - int(statm.read().split()[0]) * resource.getpagesize())
    return None


def _of_system() -> int | None:
    with suppress(OSError), open("/proc/meminfo") as meminfo:
        return 1024 * next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable"))
    return None
