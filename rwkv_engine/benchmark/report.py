"""What a run measured, raw, and the numbers computed from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "rwkv_engine.bench.1"


@dataclass
class Series:
    """One measurement of one engine, round by round.

    Attributes:
        tokens: the number of tokens that each round reads.
        seconds: the time of each round; in all series the same index is the same round.
        bandwidth: the memory bandwidth in bytes per second, measured right before each round; for "decode" only, and
            only if the whole model is on one device.
    """

    tokens: int
    seconds: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)


@dataclass
class EngineRecord:
    """What was measured of one engine.

    Attributes:
        engine, strategy: as in `EngineSpec`.
        file: the name of the model's file, without its folder.
        about: version, kernels and threads.
        bytes_per_token: read when one token is decoded, see `bytes_per_token`.
        zeros: for each layer the share of the value matrix that is not read.
        first_token: seconds from the start of a process to the first token after a prompt; only of our engine.
        memory: the peaks of its process in bytes, see `MemoryWatch`.
        series: by the names of the measurements.
    """

    engine: str
    strategy: str
    file: str
    about: dict[str, Any] = field(default_factory=dict)
    bytes_per_token: float = 0.0
    zeros: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    memory: dict[str, int] | None = None
    series: dict[str, Series] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The engine, for another program its version, and the strategy."""
        version = f" {self.about['version']}" if self.is_baseline and "version" in self.about else ""
        return f"{self.engine}{version}, {self.strategy}"

    @property
    def is_baseline(self) -> bool:
        """Whether it is another program."""
        return self.engine != "rwkv_engine"


@dataclass
class Report:
    """One run.

    Attributes:
        machine: see `machine.facts`.
        model: the model's name, precision and sizes.
        settings: how much was measured.
        engines: all of ours first.
        baselines: for each of our engines, by index, the indices of those it is compared with.
    """

    machine: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    engines: list[EngineRecord]
    baselines: dict[int, list[int]]

    def order(self) -> list[int]:
        """Indices in the order of display: each of ours, then those it is compared with, if not shown before."""
        ours = [i for i, record in enumerate(self.engines) if not record.is_baseline]
        return list(dict.fromkeys(i for one in ours for i in [one, *self.baselines.get(one, [])]))


@dataclass(frozen=True)
class Spread:
    """The median, the lowest and the highest value over several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def number(value: float) -> str:
    """A number for display, with three digits or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rate(series: Series) -> Spread:
    """Tokens per second."""
    return Spread.of([series.tokens / s for s in series.seconds])


def milliseconds(series: Series) -> Spread:
    """Milliseconds per token."""
    return Spread.of([1e3 * s / series.tokens for s in series.seconds])


def ratio(series: Series, other: Series) -> Spread:
    """How many times as fast as the other series, per token, computed within each round.

    A machine that is slow in one round is slow for both, so its speed cancels out.
    """
    return Spread.of(
        [(series.tokens / a) / (other.tokens / b) for a, b in zip(series.seconds, other.seconds, strict=True)]
    )


def read_rate(record: EngineRecord) -> Spread:
    """Bytes of weights read per second of decoding."""
    series = record.series["decode"]
    return Spread.of([record.bytes_per_token * series.tokens / s for s in series.seconds])


def share(record: EngineRecord) -> Spread | None:
    """`read_rate` as a share of the memory bandwidth of the same moment; None where that was not measured."""
    series = record.series["decode"]
    if not series.bandwidth:
        return None
    return Spread.of(
        [
            record.bytes_per_token * series.tokens / s / bandwidth
            for s, bandwidth in zip(series.seconds, series.bandwidth, strict=True)
        ]
    )


def bandwidth(records: Sequence[EngineRecord]) -> Spread | None:
    """The memory bandwidth over the whole run, in bytes per second; None where it was not measured."""
    found = [b for record in records for series in record.series.values() for b in series.bandwidth]
    return Spread.of(found) if found else None


def as_json(report: Report) -> dict[str, Any]:
    """The whole report in SI units: the raw numbers, and under `summary` what is computed from them."""
    engines = [asdict(e) | {"summary": _summary(report, i)} for i, e in enumerate(report.engines)]
    return {
        "schema": SCHEMA,
        "machine": report.machine,
        "model": report.model,
        "settings": report.settings,
        "engines": engines,
    }


def _summary(report: Report, index: int) -> dict[str, Any]:
    record = report.engines[index]
    shares = share(record)
    return {
        "tokens_per_second": {name: asdict(rate(s)) for name, s in record.series.items()},
        "read_bytes_per_second": asdict(read_rate(record)),
        "share_of_bandwidth": asdict(shares) if shares else None,
        "first_token_seconds": asdict(Spread.of(record.first_token)) if record.first_token else None,
        "times_as_fast": {
            report.engines[other].title: {
                name: asdict(ratio(series, report.engines[other].series[name]))
                for name, series in record.series.items()
                if name in report.engines[other].series
            }
            for other in report.baselines.get(index, [])
        },
    }
