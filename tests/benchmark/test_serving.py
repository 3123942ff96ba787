"""Arriving requests: how they are drawn, served and counted."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from conftest import ROOT
from rich.console import Console

from rwkv_engine.benchmark.arrivals import Arrival, draw_arrivals, first_tokens, gaps, percentile, tokens_per_second
from rwkv_engine.benchmark.report import EngineRecord, Spread
from rwkv_engine.benchmark.serve_report import ServeReport, ServeSettings, Way, as_json
from rwkv_engine.benchmark.serve_table import headline, tables
from rwkv_engine.benchmark.serving import TEMPERATURE, TOP_P, beside_a_prompt, in_turn, together
from rwkv_engine.benchmark.subject import Ours
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.scheduler import Scheduler


@pytest.fixture(scope="module")
def ours():
    return Ours(ROOT / "rwkv_engine" / "assets" / "tales", "cpu fp32")


def test_requests_are_those_of_their_seed():
    drawn = draw_arrivals(4000, 5.0, (16, 256), (7, 7), 99, seed=3)
    assert drawn == draw_arrivals(4000, 5.0, (16, 256), (7, 7), 99, seed=3)
    assert drawn != draw_arrivals(4000, 5.0, (16, 256), (7, 7), 99, seed=4)
    waits = [b.seconds - a.seconds for a, b in pairwise(drawn)]
    assert min(waits) > 0
    assert sum(waits) / len(waits) == pytest.approx(1 / 5, rel=0.05)
    assert sum(wait > 1 / 5 for wait in waits) / len(waits) == pytest.approx(0.368, abs=0.02)  # 1/e: exponential
    lengths = sorted(len(arrival.prompt) for arrival in drawn)
    assert (lengths[0], lengths[-1]) == (16, 256)
    assert lengths[2000] == pytest.approx(64, rel=0.1)  # in the middle of the logarithms
    assert {arrival.tokens for arrival in drawn} == {7}
    assert {token for arrival in drawn for token in arrival.prompt} == set(range(99))


def test_what_is_counted():
    arrivals = [Arrival(1.0, [1], 3), Arrival(2.0, [1], 2)]
    times = [[1.5, 2.0, 4.0], [5.0, 6.0]]
    assert tokens_per_second(arrivals, times) == 1.0
    assert first_tokens(arrivals, times) == [0.5, 3.0]
    assert gaps(times) == [0.5, 2.0, 1.0]
    values = [float(i) for i in range(1, 201)]
    assert [percentile(values[::-1], p) for p in (0, 50, 99, 100)] == [1, 100, 198, 200]
    assert percentile([3.0], 99) == 3.0


def test_requests_run_from_their_arrival_on_in_company(ours):
    arrivals = [Arrival(0.05, [1, 2], 4), Arrival(0.0, [3], 60), Arrival(0.3, [4] * 40, 5)]
    times = together(ours.scheduler, arrivals)
    assert [len(own) for own in times] == [4, 60, 5]
    for arrival, own in zip(arrivals, times, strict=True):
        assert own == sorted(own)
        assert own[0] > arrival.seconds


def test_a_request_in_turn_waits_for_those_before_it(ours):
    arrivals = [Arrival(0.05, [1, 2], 4), Arrival(0.0, [3], 60), Arrival(0.0, [4], 5)]
    read = []

    def generate(*arguments):
        read.append(arguments)
        return ours.generate(*arguments)

    late, early, second = in_turn(generate, arrivals)
    assert [len(own) for own in (late, early, second)] == [4, 60, 5]
    assert early[-1] < second[0] < second[-1] < late[0]
    assert read == [
        ([3], 60, 1, TEMPERATURE, TOP_P),
        ([4], 5, 2, TEMPERATURE, TOP_P),
        ([1, 2], 4, 0, TEMPERATURE, TOP_P),
    ]


def test_texts_beside_a_prompt_are_measured_until_its_first_token(ours):
    scheduler = Scheduler(ours.model.engine.model, budget=10)
    found = beside_a_prompt(scheduler, 3, [5] * 100, steps=20)
    assert len(found["before"]) == 3 * 19
    assert len(found["beside"]) == 3 * 10  # 100 tokens are read in 10 steps, with one token of each text
    assert len(found["first"]) == 1
    assert min(*found["beside"], *found["first"]) > 0
    assert not scheduler._steps._running


def test_a_request_that_fails_ends_the_measurement(ours):
    with pytest.raises(RequestError, match="token"):
        together(ours.scheduler, [Arrival(0.0, [3], 3), Arrival(0.0, [99_999], 3)])


@pytest.fixture
def report():
    """Two rounds; in the second the machine is half as fast."""
    arrivals = [Arrival(0.0, [1], 2), Arrival(1.0, [1, 2], 3)]
    ours, theirs = (
        EngineRecord("rwkv_engine", "cpu fp32i8", "m"),
        EngineRecord("rwkv", "cpu fp32", "m", {"version": "9"}),
    )
    fast = [[0.5, 1.0], [2.0, 2.25, 2.5]]
    slow = [[2 * t for t in own] for own in fast]
    way = Way(ours, True, [fast, slow], [fast, slow])
    way.beside = [{"before": [0.1, 0.2], "beside": [0.3, 0.3], "first": [0.9]}] * 2
    half = [slow, [[4 * t for t in own] for own in fast]]
    ways = [way, Way(ours, False, half, half), Way(theirs, False, half, half)]
    machine = {"processor": "P", "threads": 2, "instructions": "x86-64-v4", "versions": {"torch": "2"}}
    model = {"name": "random", "parameters": 169e6, "stored_as": "float32"}
    settings = ServeSettings(4.0, 2, (1, 2), (3, 3), 1, rounds=2)
    return ServeReport(machine, model, settings, arrivals, arrivals, ways)


def test_summary_and_tables(report):
    found = json.loads(json.dumps(as_json(report)))
    assert found["schema"] == "rwkv_engine.bench.serve.1"
    assert found["arriving"][1] == {"seconds": 1.0, "prompt": 2, "tokens": 3}
    mine, *others = found["ways"]
    assert mine["arriving"][0][0] == [0.5, 1.0]
    assert mine["summary"]["tokens_per_second"] == {"median": 1.5, "low": 1.0, "high": 2.0}
    assert mine["summary"]["first_token_seconds"]["99"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert mine["summary"]["gap_seconds_beside_a_prompt"]["ratio"]["99"]["median"] == pytest.approx(1.5)
    assert mine["summary"]["at_once_times_as_fast"]["rwkv 9, cpu fp32, one by one"]["median"] == 2.0
    assert all("at_once_times_as_fast" not in other["summary"] for other in others)
    assert report.gap(report.ways[0], 50) == Spread(0.375, 0.25, 0.5)

    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        for line in headline(report):
            console.print(line)
        for table in tables(report):
            console.print(table)
    text = capture.get()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert "2 requests, 4 a second; prompts of 1 to 2 tokens, answers of 3; seed 1" in text
    for row in (
        [
            "requests as they arrive",
            "tok/s in all",
            "first token, ms, 50%",
            "first token, ms, 99%",
            "gap, ms, 50%",
            "gap, ms, 99%",
        ],
        [
            "rwkv_engine, cpu fp32i8, together",
            "1.50 (1.00-2.00)",
            "750 (500-1,000)",
            "2,000 (1,000-3,000)",
            "375 (250-500)",
            "750 (500-1,000)",
        ],
        ["rwkv_engine, cpu fp32i8, together", "1.50 (1.00-2.00)", "2.00 x", "2.00 x"],
        ["rwkv 9, cpu fp32, one by one", "0.75 (0.50-1.00)", "", ""],
        ["rwkv_engine, cpu fp32i8, together", "100", "200", ""],
        ["beside a prompt of 4,000 tokens", "300", "300", "900"],
        ["ratio", "3.00 x", "1.50 x", ""],
    ):
        assert row in rows, row
