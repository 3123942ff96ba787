"""A report as a picture."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from rwkv_engine.benchmark.report import EngineRecord, Report, bandwidth, number, rate, ratio

INK, PALE, LIMIT = "#1f2933", "#d9dee4", "#d64545"
OURS = ("#1768ac", "#2a9d8f", "#7b4fb5", "#c77d1e", "#4a7c2c", "#9c3d62")
BASELINES = {"rwkv": "#8a949e", "transformers": "#b9c0c7"}


def draw(report: Report, path: Path) -> None:
    """Writes a PNG: decoding with the limit that memory bandwidth sets, and prefill and batches if measured."""
    import matplotlib

    matplotlib.use("Agg")  # opens no window, whatever the user's settings are
    from matplotlib import pyplot

    below = [kind for kind in ("prefill", "batch") if any(n.startswith(kind) for n in report.engines[0].series)]
    bars = 0.55 * len(report.engines) + 0.9
    settings: Any = {"font.size": 10, "axes.edgecolor": PALE, "text.color": INK, "axes.labelcolor": INK}
    with pyplot.rc_context(settings | {"xtick.color": INK, "ytick.color": INK, "font.family": "DejaVu Sans"}):
        heights = [bars, 3.4] if below else [bars]
        figure = pyplot.figure(figsize=(10, sum(heights) + 1.5), layout="constrained", dpi=150)
        grid = figure.add_gridspec(len(heights), max(len(below), 1), height_ratios=heights)
        _decode(figure.add_subplot(grid[0, :]), report)
        for i, kind in enumerate(below):
            _by_size(figure.add_subplot(grid[1, i]), report, kind)
        figure.suptitle(_title(report), x=0.01, ha="left", fontsize=11)
        figure.savefig(path, format="png")
        pyplot.close(figure)


def _title(report: Report) -> str:
    machine = report.machine
    return (
        f"{report.model['name']}, {report.model['parameters'] / 1e6:,.0f} M parameters\n"
        f"{machine['processor']}, {machine['threads']} threads, {machine['instructions']}; medians of"
        f" {report.settings['rounds']} rounds"
    )


def _colors(report: Report) -> list[str]:
    """A colour for each engine, by index."""
    ours = itertools.cycle(OURS)
    return [BASELINES[record.engine] if record.is_baseline else next(ours) for record in report.engines]


def _decode(axes: Any, report: Report) -> None:
    """Bars of tokens per second, each with a line at what the memory bandwidth would allow."""
    memory, colors = bandwidth(report.engines), _colors(report)
    fastest = max(rate(record.series["decode"]).high for record in report.engines)
    limits = [memory.median / record.bytes_per_token if memory else 0.0 for record in report.engines]
    right = 1.03 * max(fastest, *limits)
    beside = axes.get_yaxis_transform()  # x of the axes, y of the bars
    for y, i in enumerate(report.order()):
        speed = rate(report.engines[i].series["decode"])
        axes.barh(y, speed.median, 0.7, color=colors[i])
        axes.plot([speed.low, speed.high], [y, y], color=INK, linewidth=1, solid_capstyle="butt")
        if limits[i]:
            axes.plot([limits[i]] * 2, [y - 0.42, y + 0.42], color=LIMIT, linewidth=2.2)
        outlined = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
        axes.text(0.012 * right, y, number(speed.median), va="center", fontsize=9, bbox=outlined)
        axes.text(1.01, y, _versus(report, i), va="center", fontsize=9, transform=beside)
    axes.set_yticks(range(len(report.engines)), [report.engines[i].title for i in report.order()])
    axes.invert_yaxis()
    axes.set_xlim(0, right)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title("decode, tokens per second", loc="left", fontsize=10, fontweight="bold")
    if memory:
        axes.plot([], [], color=LIMIT, linewidth=2.2, label=f"limit at the measured {memory.median / 1e9:.0f} GB/s")
        axes.plot([], [], color=INK, linewidth=1, label="slowest to fastest round")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=8, borderaxespad=0.2)
    plain(axes, "x")


def _versus(report: Report, index: int) -> str:
    series = report.engines[index].series["decode"]
    others = [report.engines[i] for i in report.baselines.get(index, [])]
    return "\n".join(f"{ratio(series, o.series['decode']).median:.2f} x {o.engine}" for o in others)


def _by_size(axes: Any, report: Report, kind: str) -> None:
    """Lines over the lengths of prompts, or over the numbers of sequences."""
    sizes: list[int] = []
    dashes = itertools.cycle(("--", ":", "-."))
    colors = _colors(report)
    for i in report.order():
        record, color = report.engines[i], colors[i]
        names = [name for name in record.series if name.startswith(kind)]
        if not names:
            continue
        sizes = [int(name.split()[1]) for name in names]
        speeds = [rate(record.series[name]) for name in names]
        style = next(dashes) if record.is_baseline else "-"
        axes.plot(sizes, [s.median for s in speeds], style, color=color, marker="o", markersize=4, label=_label(record))
        axes.fill_between(
            sizes, [s.low for s in speeds], [s.high for s in speeds], color=color, alpha=0.15, linewidth=0
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    titles = {"prefill": "prefill, tokens per second", "batch": "batch, tokens per second of all sequences together"}
    axes.set_title(titles[kind], loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel({"prefill": "tokens in the prompt", "batch": "sequences in the batch"}[kind], fontsize=9)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    plain(axes, "y")


def _label(record: EngineRecord) -> str:
    return record.title if record.is_baseline else record.strategy


def plain(axes: Any, grid: str) -> None:
    """Axes without a frame, with pale lines along `grid`: "x", "y" or "both"."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
