"""Do two runs of `rwkv-engine bench` agree? Each median must lie between the other run's slowest and fastest round.

    python -m bench.agree first.json second.json

Exit code 1 if one does not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


def rates(file: str) -> dict[tuple[str, str], dict[str, float]]:
    engines = json.loads(Path(file).read_text(encoding="utf-8"))["engines"]
    return {
        (f"{engine['engine']}, {engine['strategy']}", name): rate
        for engine in engines
        for name, rate in engine["summary"]["tokens_per_second"].items()
    }


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    first, second = map(rates, sys.argv[1:])
    table = Table("tok/s", "", "first", "second", "ratio", "agree", box=box.MARKDOWN)
    apart = 0
    for key in [key for key in first if key in second]:
        a, b = first[key], second[key]
        agree = a["low"] <= b["median"] <= a["high"] and b["low"] <= a["median"] <= b["high"]
        apart += not agree
        shown = [f"{r['median']:.1f} ({r['low']:.1f}-{r['high']:.1f})" for r in (a, b)]
        table.add_row(*key, *shown, f"{b['median'] / a['median']:.3f}", "yes" if agree else "NO")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    sys.exit(apart > 0)


if __name__ == "__main__":
    main()
