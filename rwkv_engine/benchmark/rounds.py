"""The order in which engines are measured: each of them once a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rwkv_engine.benchmark.plan import Measurement
from rwkv_engine.benchmark.record import EngineRecord, Series

# Seconds before each measurement: threads of the engine measured before spin a few milliseconds before they sleep.
SETTLING = 0.02


class Asked(Protocol):
    """What `Worker` is here."""

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

    Every other round goes through the engines backwards, so that none always comes after the same one. The first round
    warms up: it is not recorded, and memory is looked at in it.

    Args:
        engines: workers, and where to record.
        plan: of a round.
        rounds: that are recorded.
        bandwidth: by the index of an engine, how to measure what its memory gives; none where that makes no sense.
        progress: told before each measurement what it is.
    """
    for number in range(rounds + 1):
        warms_up = number == 0
        order = list(enumerate(engines))
        if number % 2:
            order.reverse()
        for measurement in plan:
            for i, (worker, record) in order:
                if measurement.ours_alone and record.is_peer:
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
