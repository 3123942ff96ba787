"""From raw seconds to the numbers in tables and JSON."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from rwkv_engine.benchmark.report import (
    EngineRecord,
    Report,
    Series,
    Spread,
    as_json,
    bandwidth,
    milliseconds,
    number,
    rate,
    ratio,
    read_rate,
    share,
)
from rwkv_engine.benchmark.table import headline, tables


@pytest.fixture
def report():
    """Three rounds; in the last, memory and both engines are half as fast."""
    ours = EngineRecord("rwkv_engine", "cpu fp32", "m.pth", {"version": "1"}, 500e6, [0.0], [2.0, 1.0, 4.0])
    ours.memory = {"own": 900_000_000, "file": 250_000_000, "together": 1_000_000_000}
    ours.series = {
        "decode": Series(32, [0.5, 0.4, 1.0], [40e9, 50e9, 20e9]),
        "prefill 16": Series(16, [0.1, 0.1, 0.2]),
        "prefill 256": Series(256, [0.5, 0.5, 1.0]),
        "batch 4": Series(16, [0.2, 0.2, 0.4]),
        "texts 4": Series(16, [0.25, 0.25, 0.5]),
        "position 100": Series(32, [0.5, 0.5, 0.5]),
        "position 5000": Series(32, [0.5, 1.0, 0.55]),
    }
    other = EngineRecord("rwkv", "cpu fp32", "m.pth", {"version": "0.8.32"}, 640e6, [0.0])
    other.series = {
        "decode": Series(32, [1.0, 1.2, 2.5], [40e9, 50e9, 20e9]),
        "prefill 16": Series(16, [0.2, 0.4, 0.4]),
        "prefill 256": Series(256, [1.0, 1.5, 2.0]),
    }
    machine = {"processor": "P", "threads": 2, "instructions": "x86-64-v4", "versions": {"torch": "2"}}
    model = {"name": "random", "parameters": 169e6, "stored_as": "float32", "ffn_zeros": 0.5}
    return Report(machine, model, {"rounds": 3}, [ours, other], {0: [1]})


def test_rates_are_medians_with_the_lowest_and_the_highest(report):
    decode = report.engines[0].series["decode"]
    assert rate(decode) == Spread(64.0, 32.0, 80.0)
    assert milliseconds(decode) == Spread(15.625, 12.5, 31.25)
    assert read_rate(report.engines[0]) == Spread(32e9, 16e9, 40e9)


def test_shares_and_ratios_are_computed_within_a_round(report):
    ours, other = report.engines
    # The machine was half as fast in the last round, and the share does not show it.
    assert share(ours) == Spread(pytest.approx(0.8), pytest.approx(0.8), pytest.approx(0.8))
    assert ratio(ours.series["decode"], other.series["decode"]) == Spread(2.5, 2.0, 3.0)
    assert bandwidth(report.engines) == Spread(40e9, 20e9, 50e9)
    assert (
        bandwidth([EngineRecord("rwkv_engine", "cuda fp16 *1 -> cpu fp32", "m", series={"decode": Series(1, [1.0])})])
        is None
    )
    mixed = EngineRecord("rwkv_engine", "cuda fp16 *1 -> cpu fp32", "m", series={"decode": Series(1, [1.0])})
    assert share(mixed) is None
    halved = Series(16, ours.series["decode"].seconds)  # of half the tokens in the same time
    assert ratio(halved, ours.series["decode"]).median == 0.5


def test_json_has_raw_numbers_and_their_summary(report):
    found = json.loads(json.dumps(as_json(report)))
    assert found["schema"] == "rwkv_engine.bench.1"
    ours, other = found["engines"]
    assert ours["series"]["decode"] == {"tokens": 32, "seconds": [0.5, 0.4, 1.0], "bandwidth": [40e9, 50e9, 20e9]}
    assert ours["first_token"] == [2.0, 1.0, 4.0]
    assert ours["summary"]["tokens_per_second"]["decode"] == {"median": 64.0, "low": 32.0, "high": 80.0}
    assert ours["summary"]["first_token_seconds"]["median"] == 2.0
    assert ours["summary"]["times_as_fast"]["rwkv 0.8.32, cpu fp32"].keys() == {"decode", "prefill 16", "prefill 256"}
    assert ours["summary"]["times_as_fast"]["rwkv 0.8.32, cpu fp32"]["prefill 256"]["median"] == 2.0
    assert other["summary"]["times_as_fast"] == {}
    assert other["summary"]["first_token_seconds"] is None


def test_tables(report):
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        for line in headline(report):
            console.print(line)
        for table in tables(report):
            console.print(table)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capture.get().splitlines() if "|" in line]
    lines = capture.get()
    assert "random: 169.0 M parameters, stored as float32, 50% zeros in the squared ReLU" in lines
    assert "memory bandwidth, measured before each decoding: 40.0 GB/s (20.0 to 50.0)" in lines
    for row in (
        ["decode", "tok/s", "MB a token", "GB/s", "of memory's", "vs rwkv"],
        ["rwkv_engine, cpu fp32", "64.0 (32.0-80.0)", "500.0", "32.0", "80% (80%-80%)", "2.50 x (2.00-3.00)"],
        ["rwkv 0.8.32, cpu fp32", "26.7 (12.8-32.0)", "640.0", "17.1", "41% (34%-51%)", ""],
        ["prefill, tok/s", "16", "256", "vs rwkv, 256"],
        ["rwkv_engine, cpu fp32", "160", "512", "2.00 x (2.00-3.00)"],
        ["rwkv 0.8.32, cpu fp32", "40.0", "171", ""],
        ["batch, tok/s in all", "4"],
        ["rwkv_engine, cpu fp32", "80.0"],
        ["texts of the scheduler, tok/s in all", "4"],
        ["rwkv_engine, cpu fp32", "64.0"],
        ["ms a token", "at 100", "at 5,000", "slower"],
        ["rwkv_engine, cpu fp32", "15.6 (15.6-15.6)", "17.2 (15.6-31.2)", "1.100 x (1.000-2.000)"],
        ["process", "start to first token", "own memory at most", "mapped files at most"],
        ["rwkv_engine, cpu fp32", "2.00 s (1.00-4.00)", "0.90 GB", "0.25 GB"],
        ["rwkv 0.8.32, cpu fp32", "", "", ""],
    ):
        assert row in rows, row
    assert sum(len(row) == 2 for row in rows) == 6  # two tables with one row: the other program has none


def test_numbers_are_shown_with_three_digits():
    assert [number(x) for x in (1234.5, 99.96, 12.34, 1.234)] == ["1,234", "100.0", "12.3", "1.23"]


def test_other_programs_follow_the_engine_they_are_compared_with(report):
    report.engines.insert(1, EngineRecord("rwkv_engine", "cpu bf16", "m.pth"))
    report.baselines = {0: [2], 1: [2]}
    assert report.order() == [0, 2, 1]
