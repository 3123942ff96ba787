"""Numbers for people, computed from what was recorded."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rwkv_engine.benchmark.record import SCHEMA, EngineRecord, Report, Series


@dataclass(frozen=True)
class Spread:
    """Of several rounds: the median, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """`values`: at least one."""
        return cls(statistics.median(values), min(values), max(values))


def number(value: float) -> str:
    """For people: three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rate(series: Series) -> Spread:
    """Tokens per second."""
    return Spread.of([series.tokens / s for s in series.seconds])


def milliseconds(series: Series) -> Spread:
    """Of one token."""
    return Spread.of([1e3 * s / series.tokens for s in series.seconds])


def ratio(series: Series, other: Series) -> Spread:
    """How many times as fast as another, within each round: `tokens` may differ, a slow machine is slow for both."""
    return Spread.of(
        [(series.tokens / a) / (other.tokens / b) for a, b in zip(series.seconds, other.seconds, strict=True)]
    )


def read_rate(record: EngineRecord) -> Spread:
    """Bytes of weights read per second of decoding."""
    series = record.series["decode"]
    return Spread.of([record.bytes_per_token * series.tokens / s for s in series.seconds])


def share(record: EngineRecord) -> Spread | None:
    """The same, of what memory gave in that moment; None where that was not measured."""
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
    """What memory gave over the whole run, bytes per second."""
    found = [b for record in records for series in record.series.values() for b in series.bandwidth]
    return Spread.of(found) if found else None


def as_json(report: Report) -> dict[str, Any]:
    """The whole report, raw numbers first, in SI units, what they come to under `summary`."""
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
            report.engines[peer].title: {
                name: asdict(ratio(series, report.engines[peer].series[name]))
                for name, series in record.series.items()
                if name in report.engines[peer].series
            }
            for peer in report.peers.get(index, [])
        },
    }
