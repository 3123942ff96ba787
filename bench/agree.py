"""Checks that two runs of `rwkv-engine bench` agree: the ranges of their rounds must overlap.

    python -m bench.agree first.json second.json

It compares tokens per second and, if other programs were measured, the engine's speed relative to theirs, which does
not depend on whether the machine itself was faster in one of the runs. The exit code is 1 if any measurement differs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


def rates(file: str) -> dict[tuple[str, str], dict[str, float]]:
    """The median, lowest and highest rate of each engine and measurement."""
    engines = json.loads(Path(file).read_text(encoding="utf-8"))["engines"]
    speeds, times = {}, {}
    for engine in engines:
        who = f"{engine['engine']}, {engine['strategy']}"
        for what, rate in engine["summary"]["tokens_per_second"].items():
            speeds[who, what] = rate
        for peer, ratios in engine["summary"]["times_as_fast"].items():
            times |= {(who, f"{what}, x {peer.split()[0]}"): ratio for what, ratio in ratios.items()}
    return speeds | times


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    first, second = map(rates, sys.argv[1:])
    table = Table("engine", "tok/s, or times as fast", "first", "second", "ratio", "agree", box=box.MARKDOWN)
    apart = 0
    for key in [key for key in first if key in second]:
        a, b = first[key], second[key]
        # A median may lie outside the other run's range; with five rounds each, a quarter do so by chance.
        agree = a["low"] <= b["high"] and b["low"] <= a["high"]
        apart += not agree
        shown = [f"{r['median']:.4g} ({r['low']:.4g}-{r['high']:.4g})" for r in (a, b)]
        table.add_row(*key, *shown, f"{b['median'] / a['median']:.3f}", "yes" if agree else "NO")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    sys.exit(apart > 0)


if __name__ == "__main__":
    main()
