"""What a round measures, and in which order: each measurement of each engine once a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rwkv_engine.benchmark.report import EngineRecord, Series
from rwkv_engine.runtime.decoder import BUCKETS

STEPS = 4  # of a batch in one measurement; each takes at least as long as decoding a token
NEAR = 100  # the position that a distant one is compared with
# Seconds to wait before each measurement: the threads of the engine measured before spin a few milliseconds before they
# sleep.
SETTLING = 0.02


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        rounds: the number of rounds that are recorded; one more comes first, to warm up.
        starts: fresh processes for the time to the first token; one more comes first, to have the file in memory.
        decode: tokens decoded in a measurement.
        prefill: lengths of prompts.
        batch: numbers of sequences. As many texts are measured through the scheduler, where they share one pass.
        position: decoding is measured at this position too, and compared with position 100; 0 for not at all.
    """

    rounds: int = 5
    starts: int = 3
    decode: int = 32
    prefill: tuple[int, ...] = (16, 256, 1024)
    batch: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    position: int = 0


@dataclass(frozen=True)
class Measurement:
    """One command to each engine.

    Attributes:
        name: unique in a plan: "decode", "prefill 256", "batch 8", "texts 8", "position 100000".
        do: the command, see `Measurements`.
        arguments: its arguments.
        tokens: the number of tokens it reads.
        ours_alone: whether only our engine can do it.
    """

    name: str
    do: str
    arguments: dict[str, int]
    tokens: int
    ours_alone: bool = False


def plan(settings: Settings) -> list[Measurement]:
    """The measurements of a round, in order."""
    found = [Measurement("decode", "decode", {"tokens": settings.decode}, settings.decode)]
    found += [Measurement(f"prefill {n}", "prefill", {"tokens": n}, n) for n in settings.prefill]
    found += [
        Measurement(f"batch {size}", "batch", {"size": size, "steps": STEPS}, size * STEPS, True)
        for size in settings.batch
    ]
    found += [
        Measurement(f"texts {size}", "texts", {"size": size, "steps": STEPS}, size * STEPS, True)
        for size in settings.batch
        if size <= BUCKETS[-1]
    ]
    found += [
        Measurement(f"position {p}", "at", {"position": p, "tokens": settings.decode}, settings.decode, True)
        for p in positions(settings)
    ]
    return found


def positions(settings: Settings) -> Sequence[int]:
    """The positions at which the time per token is measured, lowest first."""
    return [NEAR, settings.position] if settings.position else []


class Asked(Protocol):
    """The part of `Worker` that rounds need."""

    def ask(self, do: str, **arguments: Any) -> Any:
        """See `Worker`."""


def run_rounds(
    engines: Sequence[tuple[Asked, EngineRecord]],
    plan: Sequence[Measurement],
    rounds: int,
    bandwidth: Mapping[int, Callable[[], float]],
    progress: Callable[[str], None],
) -> None:
    """Fills the records' series.

    Every second round goes through the engines backwards, so that none always follows the same one. The first round
    warms up: it is not recorded, and memory is watched in it.

    Args:
        engines: workers, and where to record.
        plan: the measurements of a round.
        rounds: the number of rounds that are recorded.
        bandwidth: by the index of an engine, a function that measures the bandwidth of its memory; engines on several
            devices have none.
        progress: called before each measurement with its description.
    """
    for number in range(rounds + 1):
        warms_up = number == 0
        order = list(enumerate(engines))
        if number % 2:
            order.reverse()
        for measurement in plan:
            for i, (worker, record) in order:
                if measurement.ours_alone and record.is_baseline:
                    continue
                progress(f"{'warming up' if warms_up else f'round {number}'}: {measurement.name}, {record.title}")
                if warms_up:
                    worker.ask("watch", on=True)
                time.sleep(SETTLING)
                given = bandwidth[i]() if measurement.name == "decode" and i in bandwidth else None
                seconds = worker.ask(measurement.do, **measurement.arguments)
                if warms_up:
                    worker.ask("watch", on=False)
                    continue
                series = record.series.setdefault(measurement.name, Series(measurement.tokens))
                series.seconds.append(seconds)
                if given is not None:
                    series.bandwidth.append(given)
