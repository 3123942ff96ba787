"""Each figure in a table of benchmark results in the README or docs/ is that of the JSON file which the page names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT
from rich.table import Table

from rwkv_engine.benchmark.report import EngineRecord, Report, Series
from rwkv_engine.benchmark.table import tables

Cells = dict[str, dict[str, str]]  # by row and column
RESULTS = re.compile(r"bench/results/[\w-]+\.json")
PAGES = ["README.md", "docs/speed.md"]


def report_of(file: Path) -> Report:
    """What `rwkv-engine bench --json` wrote."""
    written = json.loads(file.read_text(encoding="utf-8"))
    engines = []
    for engine in written["engines"]:
        fields = {name: value for name, value in engine.items() if name not in ("summary", "series")}
        series = {name: Series(**values) for name, values in engine["series"].items()}
        engines.append(EngineRecord(**fields, series=series))
    titles = [engine.title for engine in engines]
    peers = {
        i: [titles.index(title) for title in engine["summary"]["times_as_fast"]]
        for i, engine in enumerate(written["engines"])
    }
    return Report(written["machine"], written["model"], written["settings"], engines, peers)


def cells_of(table: Table) -> Cells:
    """The cells of a table of `rwkv-engine bench`."""
    names, *columns = table.columns
    rows: Cells = {str(name): {} for name in names.cells}
    for column in columns:
        for name, cell in zip(rows, column.cells, strict=True):
            rows[name][str(column.header)] = str(cell)
    return rows


def split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("page", PAGES)
def test_tables_show_what_the_results_say(page):
    printed: dict[str, Cells] = {}
    header: list[str] = []
    checked = 0
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        if named := RESULTS.findall(line):
            engines = json.loads((ROOT / named[-1]).read_text(encoding="utf-8")).get("engines")
            found = tables(report_of(ROOT / named[-1])) if engines else []
            printed = {str(table.columns[0].header): cells_of(table) for table in found}
        elif not line.startswith("|"):
            header = []
        elif not header:
            header = split(line)
        elif header[0] in printed and not line.startswith("|-"):
            name, *cells = split(line)
            expected = [printed[header[0]][name][column] for column in header[1:]]
            assert cells == expected, f"{page}:{number}: expected {expected}"
            checked += 1
        else:
            title = re.match(r"\| *(rwkv_engine|rwkv|transformers)\b.*, c", line)
            assert not title, f"{page}:{number}: name the file in bench/results that this table is from"
    assert checked
