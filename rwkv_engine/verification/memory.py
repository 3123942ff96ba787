"""The current and the peak memory of this process."""

from __future__ import annotations

from contextlib import suppress


def peak_memory() -> int | None:
    """The peak of the resident memory in bytes, including mapped files; None on systems other than Linux.

    `getrusage` is not used, because it starts a process with the peak of its parent.
    """
    with suppress(OSError), open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return None


def resident_memory() -> tuple[int, int] | None:
    """The resident bytes of the process's own memory and of mapped files; None on systems other than Linux."""
    with suppress(OSError), open("/proc/self/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
        own, file = (1024 * int(sizes[name].split()[0]) for name in ("RssAnon", "RssFile"))
        return own, file
    return None
