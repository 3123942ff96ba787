"""The memory of this process: now, and at its peak."""

from __future__ import annotations

from contextlib import suppress


def peak_memory() -> int | None:
    """The largest number of bytes that were resident at once, mapped files included; None outside Linux.

    `getrusage` is not used: with it a process begins with the peak of its parent.
    """
    with suppress(OSError), open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return None


def resident_memory() -> tuple[int, int] | None:
    """The resident bytes: the process's own, and those of mapped files; None outside Linux."""
    with suppress(OSError), open("/proc/self/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
        own, file = (1024 * int(sizes[name].split()[0]) for name in ("RssAnon", "RssFile"))
        return own, file
    return None
