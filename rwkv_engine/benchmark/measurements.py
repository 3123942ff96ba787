"""What can be measured of a subject, each by a name and in seconds; runs beside it, in its process."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rwkv_engine.benchmark.memory import MemoryWatch
from rwkv_engine.benchmark.stopwatch import Clock, seconds
from rwkv_engine.benchmark.subject import Subject
from rwkv_engine.progress import Progress

# Tokens of a text in which the share of zeros is counted.
SEEN = 64


class Measurements:
    """Answers commands about a subject; `decode`, `prefill`, `batch` and `at` with seconds."""

    def __init__(self, subject: Subject, watch: MemoryWatch, clock: Clock = time.perf_counter):
        """`watch`: has looked on while the subject was loaded."""
        self.subject: Any = subject  # what only ours can do is asked of ours alone
        self.ids: list[int] = []
        self._watch = watch
        self._clock = clock

    def answer(self, do: str, arguments: dict[str, Any], progress: Progress) -> Any:
        """What a command gives, fit for JSON; `go_to` and `write` tell how far they are."""
        if do in ("go_to", "write"):
            arguments = arguments | {"progress": progress}
        command: Callable[..., Any] = getattr(self, f"do_{do}")
        with torch.no_grad():
            return command(**arguments)

    def do_about(self) -> dict[str, Any]:
        """What is at work."""
        return self.subject.about | {"threads": torch.get_num_threads(), "torch": torch.__version__}

    def do_read(self, ids: list[int]) -> None:
        """Gives the text that all commands read, from its beginning and over again where it is too short."""
        self.ids = ids

    def do_decode(self, tokens: int) -> float:
        """Reading so many tokens one by one."""
        return self._seconds(self.subject.decode, self._text(tokens))

    def do_prefill(self, tokens: int) -> float:
        """Reading a prompt."""
        return self._seconds(self.subject.prefill, self._text(tokens))

    def do_batch(self, size: int, steps: int) -> float:
        """Reading one token of each of `size` sequences, `steps` times."""
        ids = self._text(size)
        slots = self.subject.take(ids)
        try:
            return self._seconds(self.subject.step, ids, slots, steps)
        finally:
            self.subject.free(slots)

    def do_go_to(self, positions: list[int], progress: Progress) -> None:
        """Reads up to there, so that `at` can go on from these positions."""
        self.subject.go_to(self._text(4096), positions, progress)

    def do_at(self, position: int, tokens: int) -> float:
        """Reading so many tokens one by one from a position."""
        self.subject.at(position)
        return self.do_decode(tokens)

    def do_zeros(self) -> list[float]:
        """Layer by layer, what is skipped of the value matrix."""
        return self.subject.zeros(self._text(SEEN))

    def do_write(self, tokens: int, progress: Progress) -> list[int]:
        """A text of the model's own."""
        return self.subject.write(tokens, progress)

    def do_watch(self, on: bool) -> None:
        """Whether memory is looked at all the time; not while clocks run that count."""
        self._watch.start() if on else self._watch.stop()

    def do_memory(self) -> dict[str, int] | None:
        """Peaks in bytes."""
        peaks = self._watch.peaks()
        if peaks and "cuda" in self.subject.device:
            peaks["gpu"] = torch.cuda.max_memory_allocated()
        return peaks

    def _text(self, n: int) -> list[int]:
        return (self.ids * -(-n // len(self.ids)))[:n]

    def _seconds(self, run: Callable[..., object], *arguments: Any) -> float:
        return seconds(partial(run, *arguments), self._clock, self.subject.device)
