"""A report on arriving requests as tables, with the borders of Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from rwkv_engine.benchmark.report import Spread, number
from rwkv_engine.benchmark.serve_report import PERCENTS, ServeReport, beside, slowed


def headline(report: ServeReport) -> Iterator[str]:
    """A few lines that say what was measured on which machine."""
    model, machine, settings = report.model, report.machine, report.settings
    yield f"{model['name']}: {model['parameters'] / 1e6:,.1f} M parameters, stored as {model['stored_as']}"
    torch = machine["versions"].get("torch")
    yield f"{machine['processor']}, {machine['threads']} threads, {machine['instructions']}, torch {torch}"
    yield (
        f"{settings.requests} requests, {settings.rate:g} a second; prompts of {_range(settings.prompts)} tokens,"
        f" answers of {_range(settings.answers)}; seed {settings.seed}"
    )
    rounds = f"medians of {settings.rounds} rounds, lowest and highest in brackets; " if settings.rounds > 1 else ""
    yield f"{rounds}percentiles over all requests, or all tokens, of a round"


def tables(report: ServeReport) -> Iterator[Table]:
    """Arriving requests, texts at once, and a long prompt."""
    settings = report.settings
    columns = [f"{what}, {p}%" for what in ("first token, ms", "gap, ms") for p in PERCENTS]
    table = _table("requests as they arrive", ["tok/s in all", *columns])
    for way in report.ways:
        firsts = [_shown(report.first(way, p), 1e3) for p in PERCENTS]
        table.add_row(
            way.title, _shown(report.rate(way)), *firsts, *[_shown(report.gap(way, p), 1e3) for p in PERCENTS]
        )
    yield table

    others = [way for way in report.ways if not way.together]
    table = _table(
        f"{settings.at_once} texts at once, {settings.at_once_prompt} + {settings.at_once_answer} tokens",
        ["tok/s in all", *[f"vs {way.title}" for way in others]],
    )
    for way in report.ways:
        times = [f"{_shown(report.times_as_fast(way, other))} x" for other in others] if way.together else []
        table.add_row(way.title, _shown(report.rate(way, at_once=True)), *times)
    yield table

    table = _table(
        f"gap between tokens of {settings.running} texts, ms",
        [*[f"{p}%" for p in PERCENTS], "first token of the prompt"],
    )
    for way in report.ways:
        if way.together:
            before, during = ([_shown(beside(way, which, p), 1e3) for p in PERCENTS] for which in ("before", "beside"))
            first = Spread.of([seconds for found in way.beside for seconds in found["first"]])
            table.add_row(way.title, *before)
            table.add_row(f"beside a prompt of {settings.entering:,} tokens", *during, _shown(first, 1e3))
            table.add_row("ratio", *[f"{_shown(slowed(way, p))} x" for p in PERCENTS])
    yield table


def _table(title: str, columns: list[str]) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column(title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _range(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _shown(spread: Spread, factor: float = 1.0) -> str:
    low, median, high = (number(factor * value) for value in (spread.low, spread.median, spread.high))
    return median if low == high else f"{median} ({low}-{high})"
