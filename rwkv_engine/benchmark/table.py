"""A report as tables, with the borders of Markdown: for the screen and for a README."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from rwkv_engine.benchmark.report import (
    EngineRecord,
    Report,
    Spread,
    bandwidth,
    milliseconds,
    number,
    rate,
    ratio,
    read_rate,
    share,
)

TITLES = {
    "prefill": "prefill, tok/s",
    "batch": "batch, tok/s in all",
    "texts": "texts of the scheduler, tok/s in all",
}


def headline(report: Report) -> Iterator[str]:
    """A few lines that say what was measured on which machine."""
    model, machine = report.model, report.machine
    zeros = f", {model['ffn_zeros']:.0%} zeros in the squared ReLU" if "ffn_zeros" in model else ""
    yield f"{model['name']}: {model['parameters'] / 1e6:,.1f} M parameters, stored as {model['stored_as']}{zeros}"
    yield f"{machine['processor']}, {machine['threads']} threads, {machine['instructions']}, torch {_torch(report)}"
    if found := bandwidth(report.engines):
        yield (
            f"memory bandwidth, measured before each decoding: {found.median / 1e9:.1f} GB/s"
            f" ({found.low / 1e9:.1f} to {found.high / 1e9:.1f})"
        )
    yield f"medians of {report.settings['rounds']} rounds, lowest and highest in brackets"


def tables(report: Report) -> Iterator[Table]:
    """The tables for which there are numbers."""
    yield _decode(report)
    for kind, title in TITLES.items():
        sizes = [name for name in report.engines[0].series if name.startswith(kind)]
        if sizes:
            yield _by_size(report, title, sizes)
    if any(name.startswith("position") for name in report.engines[0].series):
        yield _positions(report)
    yield _process(report)


def _torch(report: Report) -> str:
    return str(report.machine["versions"].get("torch"))


def _table(report: Report, title: str, columns: list[str]) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column(title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _baselines_of(report: Report, index: int) -> list[EngineRecord]:
    return [report.engines[i] for i in report.baselines.get(index, [])]


def _compared(report: Report) -> list[str]:
    """The names of the other programs, in the order of their records."""
    return list(dict.fromkeys(record.engine for record in report.engines if record.is_baseline))


def _times(report: Report, index: int, baseline: str, name: str) -> str:
    found = [other for other in _baselines_of(report, index) if other.engine == baseline]
    if not found or name not in found[0].series:
        return ""
    times = ratio(report.engines[index].series[name], found[0].series[name])
    return f"{times.median:.2f} x ({times.low:.2f}-{times.high:.2f})"


def _decode(report: Report) -> Table:
    names = _compared(report)
    columns = ["tok/s", "MB a token", "GB/s", "of memory's", *[f"vs {name}" for name in names]]
    table = _table(report, "decode", columns)
    for i in report.order():
        record = report.engines[i]
        of_memory = share(record)
        table.add_row(
            record.title,
            _spread(rate(record.series["decode"])),
            f"{record.bytes_per_token / 1e6:,.1f}",
            f"{read_rate(record).median / 1e9:.1f}",
            f"{of_memory.median:.0%} ({of_memory.low:.0%}-{of_memory.high:.0%})" if of_memory else "",
            *[_times(report, i, name, "decode") for name in names],
        )
    return table


def _by_size(report: Report, title: str, names: list[str]) -> Table:
    table = _table(report, title, [])
    baselines = _compared(report) if names[0].startswith("prefill") else []
    for name in names:
        table.add_column(name.partition(" ")[2], justify="right")
    for baseline in baselines:
        table.add_column(f"vs {baseline}, {names[-1].partition(' ')[2]}", justify="right")
    for i in report.order():
        record = report.engines[i]
        if names[0] in record.series:
            cells = [number(rate(record.series[name]).median) for name in names]
            table.add_row(record.title, *cells, *[_times(report, i, baseline, names[-1]) for baseline in baselines])
    return table


def _positions(report: Report) -> Table:
    near, far = (name for name in report.engines[0].series if name.startswith("position"))
    table = _table(report, "ms a token", [f"at {int(name.split()[1]):,}" for name in (near, far)])
    table.add_column("slower", justify="right")
    for record in (report.engines[i] for i in report.order()):
        if near in record.series:
            slower = ratio(record.series[near], record.series[far])
            cells = [_spread(milliseconds(record.series[name])) for name in (near, far)]
            table.add_row(record.title, *cells, f"{slower.median:.3f} x ({slower.low:.3f}-{slower.high:.3f})")
    return table


def _process(report: Report) -> Table:
    table = _table(report, "process", ["start to first token", "own memory at most", "mapped files at most"])
    for record in (report.engines[i] for i in report.order()):
        seconds = Spread.of(record.first_token) if record.first_token else None
        memory = record.memory or {}
        table.add_row(
            record.title,
            f"{seconds.median:.2f} s ({seconds.low:.2f}-{seconds.high:.2f})" if seconds else "",
            *[f"{memory[kind] / 1e9:.2f} GB" if kind in memory else "" for kind in ("own", "file")],
        )
    return table


def _spread(spread: Spread) -> str:
    return f"{number(spread.median)} ({number(spread.low)}-{number(spread.high)})"
