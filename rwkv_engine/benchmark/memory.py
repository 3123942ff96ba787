"""How much memory a process holds at most: its own, and pages of mapped files, which the system may take back."""

from __future__ import annotations

from threading import Event, Thread

from rwkv_engine.verification.memory import peak_memory, resident_memory

PERIOD = 0.02  # seconds


class MemoryWatch:
    """Looks again and again, in a thread, between `start` and `stop`: the system remembers only the peak of both."""

    def __init__(self) -> None:
        self._own = self._file = 0
        self._stopped = Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begins to look."""
        self._stopped.clear()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it, so that clocks run undisturbed."""
        if self._thread:
            self._stopped.set()
            self._thread.join()
            self._thread = None
            self._look()  # a call into C may have kept the thread from looking

    def peaks(self) -> dict[str, int] | None:
        """Bytes: `own`, `file`, each at its own peak, and `together`, theirs; None outside Linux."""
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
