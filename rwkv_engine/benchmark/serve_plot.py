"""A report on arriving requests as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rwkv_engine.benchmark.arrivals import first_tokens, gaps
from rwkv_engine.benchmark.plot import BASELINES, INK, OURS, PALE, plain
from rwkv_engine.benchmark.report import number
from rwkv_engine.benchmark.serve_report import ServeReport, Way


def draw(report: ServeReport, path: Path) -> None:
    """Writes a PNG: tokens per second, and how many requests and tokens waited for how long."""
    import matplotlib

    matplotlib.use("Agg")  # opens no window, whatever the user's settings are
    from matplotlib import pyplot

    settings: Any = {"font.size": 10, "axes.edgecolor": PALE, "text.color": INK, "axes.labelcolor": INK}
    with pyplot.rc_context(settings | {"xtick.color": INK, "ytick.color": INK, "font.family": "DejaVu Sans"}):
        rows = 0.5 * len(report.ways) + 0.9
        figure: Any = pyplot.figure(figsize=(10, rows + 4.2), layout="constrained", dpi=150)
        upper, lower = figure.subfigures(2, 1, height_ratios=[rows, 3.4])
        colors = _colors(report)
        for axes, at_once in zip(upper.subplots(1, 2), (False, True), strict=True):
            _rates(axes, report, colors, at_once)
        firsts = [[x for times in way.arriving for x in first_tokens(report.arriving, times)] for way in report.ways]
        between = [[1e3 * x for times in way.arriving for x in gaps(times)] for way in report.ways]
        first, gap, beside = lower.subplots(1, 3)
        _shares(first, "time to first token, s", firsts, colors, ["-"] * len(firsts))
        _shares(gap, "gap between tokens, ms", between, colors, ["-"] * len(between))
        _beside(beside, report, colors)
        figure.suptitle(_title(report), x=0.01, ha="left", fontsize=11)
        figure.savefig(path, format="png")
        pyplot.close(figure)


def _title(report: ServeReport) -> str:
    machine, settings = report.machine, report.settings
    return (
        f"{report.model['name']}, {report.model['parameters'] / 1e6:,.1f} M parameters; {settings.requests} requests,"
        f" {settings.rate:g} a second\n"
        f"{machine['processor']}, {machine['threads']} threads, {machine['instructions']}"
    )


def _colors(report: ServeReport) -> list[str]:
    ours = itertools.cycle(OURS)
    return [BASELINES[way.record.engine] if way.record.is_baseline else next(ours) for way in report.ways]


def _rates(axes: Any, report: ServeReport, colors: list[str], at_once: bool) -> None:
    speeds = [report.rate(way, at_once) for way in report.ways]
    largest = max(speed.high for speed in speeds)
    for y, (speed, color) in enumerate(zip(speeds, colors, strict=True)):
        axes.barh(y, speed.median, 0.7, color=color)
        axes.plot([speed.low, speed.high], [y, y], color=INK, linewidth=1, solid_capstyle="butt")
        axes.text(speed.high + 0.02 * largest, y, number(speed.median), va="center", fontsize=9)
    axes.set_xlim(0, 1.25 * largest)
    axes.set_ylim(len(speeds) - 0.4, -0.6)
    axes.set_yticks(range(len(speeds)), [] if at_once else [way.title for way in report.ways])
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    what = f"{report.settings.at_once} texts at once" if at_once else "as they arrive"
    axes.set_title(f"tokens per second, {what}", loc="left", fontsize=10, fontweight="bold")
    plain(axes, "x")


def _shares(axes: Any, title: str, values: Sequence[list[float]], colors: Sequence[str], styles: Sequence[str]) -> None:
    """For each list the share of values that are at most as large."""
    from matplotlib.ticker import LogLocator

    for own, color, style in zip(values, colors, styles, strict=True):
        ordered = sorted(own)
        heights = [(i + 1) / len(ordered) for i in range(len(ordered))]
        axes.plot(ordered, heights, style, color=color, linewidth=1.6, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    plain(axes, "both")


def _beside(axes: Any, report: ServeReport, colors: list[str]) -> None:
    ways: list[tuple[Way, str]] = [(w, c) for w, c in zip(report.ways, colors, strict=True) if w.together]
    values = [
        [1e3 * x for found in way.beside for x in found[which]] for way, _ in ways for which in ("before", "beside")
    ]
    _shares(
        axes,
        f"gap of {report.settings.running} running texts, ms",
        values,
        [color for _, color in ways for _ in range(2)],
        ["-", ":"] * len(ways),
    )
    axes.plot([], [], "-", color=INK, label="alone")
    axes.plot([], [], ":", color=INK, label=f"beside a prompt\nof {report.settings.entering:,} tokens")
    axes.legend(loc="best", frameon=False, fontsize=8)
