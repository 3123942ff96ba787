"""How much memory a process holds, and has held at most."""

from __future__ import annotations

from contextlib import suppress


def peak_memory() -> int | None:
    """Bytes that were resident together at most, mapped files included; None where nothing tells (outside Linux).

    Not `getrusage`: there a process begins with the peak of the one that started it.
    """
    with suppress(OSError), open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return None


def resident_memory() -> tuple[int, int] | None:
    """Bytes that are resident now: the process's own, and those of mapped files; None outside Linux."""
    with suppress(OSError), open("/proc/self/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
        own, file = (1024 * int(sizes[name].split()[0]) for name in ("RssAnon", "RssFile"))
        return own, file
    return None
