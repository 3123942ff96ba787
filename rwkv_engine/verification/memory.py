"""How much memory a process has held at most."""

from __future__ import annotations

from contextlib import suppress


def peak_memory() -> int | None:
    """Bytes that were resident together at most, mapped files included; None where nothing tells (outside Linux).

    Not `getrusage`: there a process begins with the peak of the one that started it.
    """
    with suppress(OSError), open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return None
