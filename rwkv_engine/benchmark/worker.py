"""The process of one engine: it loads a model, then answers commands, one JSON object a line, until input ends."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from rwkv_engine.benchmark.arrivals import Arrival, Times
from rwkv_engine.benchmark.instruments import Clock, MemoryWatch, seconds
from rwkv_engine.benchmark.serving import beside_a_prompt, in_turn, together
from rwkv_engine.benchmark.subject import Ours, Subject
from rwkv_engine.errors import RwkvError
from rwkv_engine.notices import show_notices
from rwkv_engine.progress import Progress
from rwkv_engine.verification.baselines import RwkvPackage, Transformers

ZERO_TOKENS = 64  # tokens of a text over which the share of zeros is counted


def main(engine: str, path: str, strategy: str) -> None:
    """Loads and serves until standard input ends.

    An answer is `{"answer": ...}` or `{"error": "one line"}`, after any number of `{"progress": [done, total]}`.
    """
    with suppress(BrokenPipeError), os.fdopen(os.dup(1), "w") as answers:  # which breaks when the parent has ended
        show_notices()
        os.dup2(2, 1)  # anything a program prints is not an answer

        def say(**message: Any) -> None:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

        def progress(done: int, total: int) -> None:
            say(progress=[done, total])

        try:
            watch = MemoryWatch()
            watch.start()
            measurements = Measurements(load(engine, Path(path), strategy, progress), watch)
            watch.stop()
            serve(sys.stdin, measurements, say, progress)
        except RwkvError as error:
            say(error=str(error))
        except Exception as error:  # another program may raise anything
            say(error=f"{type(error).__name__}: {error}".partition("\n")[0])


def load(engine: str, path: Path, strategy: str, progress: Progress) -> Subject:
    """The loaded engine of a name: "rwkv_engine", or one of `baselines.BASELINES`."""
    if engine == "rwkv_engine":
        return Ours(path, strategy, progress)
    return RwkvPackage(path, strategy) if engine == "rwkv" else Transformers(path, strategy)


def serve(commands: TextIO, measurements: Measurements, say: Any, progress: Progress) -> None:
    """Answers every line of `commands`."""
    for line in commands:
        arguments = json.loads(line)
        say(answer=measurements.answer(arguments.pop("do"), arguments, progress))


class Measurements:
    """Answers commands about an engine; `decode`, `prefill`, `batch`, `texts` and `at` answer with seconds."""

    def __init__(self, subject: Subject, watch: MemoryWatch, clock: Clock = time.perf_counter):
        """`watch` has been watching while the engine was loaded."""
        self.subject: Any = subject  # some commands are for our engine only
        self.ids: list[int] = []
        self._watch = watch
        self._clock = clock

    def answer(self, do: str, arguments: dict[str, Any], progress: Progress) -> Any:
        """The result of a command, fit for JSON; `go_to` and `write` report their progress."""
        if do in ("go_to", "write"):
            arguments = arguments | {"progress": progress}
        command: Callable[..., Any] = getattr(self, f"do_{do}")
        with torch.no_grad():
            return command(**arguments)

    def do_about(self) -> dict[str, Any]:
        """Versions, threads and kernels in use."""
        return self.subject.about | {"threads": torch.get_num_threads(), "torch": torch.__version__}

    def do_read(self, ids: list[int]) -> None:
        """Sets the text that all commands read from its beginning, repeated where it is too short."""
        self.ids = ids

    def do_decode(self, tokens: int) -> float:
        """Reads that many tokens one by one."""
        return self._seconds(self.subject.decode, self._text(tokens))

    def do_prefill(self, tokens: int) -> float:
        """Reads a prompt of that many tokens."""
        return self._seconds(self.subject.prefill, self._text(tokens))

    def do_batch(self, size: int, steps: int) -> float:
        """Decodes `steps` tokens of each of `size` sequences together."""
        ids = self._text(size)
        slots = self.subject.take(ids)
        try:
            return self._seconds(self.subject.step, ids, slots, steps)
        finally:
            self.subject.free(slots)

    def do_texts(self, size: int, steps: int) -> float:
        """Generates `steps` tokens of each of `size` texts through the scheduler."""
        texts = self.subject.begin(self._text(size))
        try:
            return self._seconds(self.subject.advance, texts, steps)
        finally:
            self.subject.end(texts)

    def do_together(self, arrivals: list[Any]) -> Times:
        """Serves requests in company as they arrive; for our engine only."""
        return together(self.subject.scheduler, [Arrival(*one) for one in arrivals], self._clock)

    def do_in_turn(self, arrivals: list[Any]) -> Times:
        """Serves requests one after the other."""
        return in_turn(self.subject.generate, [Arrival(*one) for one in arrivals], self._clock)

    def do_beside_a_prompt(self, running: int, prompt: list[int], steps: int) -> dict[str, list[float]]:
        """Gaps between tokens of running texts while a prompt enters; for our engine only."""
        return beside_a_prompt(self.subject.scheduler, running, prompt, steps, self._clock)

    def do_go_to(self, positions: list[int], progress: Progress) -> None:
        """Reads up to these positions, from which `at` can then continue."""
        self.subject.go_to(self._text(4096), positions, progress)

    def do_at(self, position: int, tokens: int) -> float:
        """Reads that many tokens one by one from a position on."""
        self.subject.at(position)
        return self.do_decode(tokens)

    def do_zeros(self) -> list[float]:
        """The share of the value matrix that is skipped, layer by layer."""
        return self.subject.zeros(self._text(ZERO_TOKENS))

    def do_write(self, tokens: int, progress: Progress) -> list[int]:
        """A text that the model generates."""
        return self.subject.write(tokens, progress)

    def do_watch(self, on: bool) -> None:
        """Starts or ends the watch on memory, which must not run while something is timed."""
        self._watch.start() if on else self._watch.stop()

    def do_memory(self) -> dict[str, int] | None:
        """Peaks in bytes, see `MemoryWatch.peaks`, and of the GPU's memory."""
        peaks = self._watch.peaks()
        if peaks and "cuda" in self.subject.device:
            peaks["gpu"] = torch.cuda.max_memory_allocated()
        return peaks

    def _text(self, n: int) -> list[int]:
        return (self.ids * -(-n // len(self.ids)))[:n]

    def _seconds(self, run: Callable[..., object], *arguments: Any) -> float:
        return seconds(partial(run, *arguments), self._clock, self.subject.device)
