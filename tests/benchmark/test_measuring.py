"""What is measured in which order, with a clock that only the fake engines advance."""

from __future__ import annotations

from collections import Counter

import pytest

from rwkv_engine.benchmark import rounds
from rwkv_engine.benchmark.instruments import MemoryWatch, ReadBandwidth
from rwkv_engine.benchmark.report import EngineRecord, Series
from rwkv_engine.benchmark.rounds import Measurement, Settings, plan
from rwkv_engine.benchmark.worker import Measurements


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Fake:
    """Takes 0.25 s for a decoded token, 0.5 s for a prompt, 0.125 s for a step; all else is slow and must not count."""

    device = "cpu"
    about = {"version": "0"}  # noqa: RUF012

    def __init__(self, clock):
        self.clock = clock
        self.calls = []
        self.taken = 0

    def decode(self, ids):
        self.calls.append(ids)
        self.clock.now += 0.25 * len(ids)

    def prefill(self, ids):
        self.calls.append(ids)
        self.clock.now += 0.5

    def take(self, ids):
        self.clock.now += 1000
        self.taken += len(ids)
        return ids

    def step(self, ids, slots, steps):
        if steps == 99:
            raise ValueError("no such step")
        self.clock.now += 0.125 * steps

    def free(self, slots):
        self.clock.now += 1000
        self.taken -= len(slots)

    begin, advance, end = take, lambda self, texts, steps: self.step([], texts, steps), free

    def at(self, position):
        self.clock.now += 1000
        self.calls.append(position)


@pytest.fixture
def measured():
    found = Measurements(Fake(clock := Clock()), MemoryWatch(), clock)
    found.answer("read", {"ids": [1, 2, 3]}, None)
    return found


def test_commands_answer_with_the_seconds_of_the_call_alone(measured):
    def ask(do, **arguments):
        return measured.answer(do, arguments, None)

    assert ask("decode", tokens=8) == 2.0
    assert ask("prefill", tokens=2) == 0.5
    assert ask("batch", size=4, steps=3) == 0.375
    assert ask("texts", size=2, steps=3) == 0.375
    assert ask("at", position=7, tokens=4) == 1.0
    assert measured.subject.calls == [[1, 2, 3, 1, 2, 3, 1, 2], [1, 2], 7, [1, 2, 3, 1]]
    assert measured.subject.taken == 0
    with pytest.raises(ValueError, match="no such step"):
        ask("batch", size=4, steps=99)
    with pytest.raises(ValueError, match="no such step"):
        ask("texts", size=4, steps=99)
    assert measured.subject.taken == 0, "slots are returned even after an error"


def test_a_plan_counts_the_tokens_it_reads():
    found = plan(Settings(decode=32, prefill=(16,), batch=(1, 8, 32), position=5000))
    assert [(m.name, m.tokens, m.ours_alone) for m in found] == [
        ("decode", 32, False),
        ("prefill 16", 16, False),
        ("batch 1", 4, True),
        ("batch 8", 32, True),
        ("batch 32", 128, True),
        ("texts 1", 4, True),
        ("texts 8", 32, True),
        ("position 100", 32, True),
        ("position 5000", 32, True),
    ]
    assert found[3].arguments == {"size": 8, "steps": 4}
    assert len(plan(Settings(prefill=(), batch=()))) == 1


class Asked:
    def __init__(self, log, name):
        self.log, self.name, self.watched = log, name, False

    def ask(self, do, **arguments):
        if do == "watch":
            self.watched = arguments["on"]
            return None
        self.log.append((self.name, do, self.watched))
        return float(len(self.log))


def test_rounds_measure_every_engine_once_in_alternating_order(monkeypatch):
    monkeypatch.setattr(rounds, "SETTLING", 0)
    log, told = [], []
    records = [EngineRecord("rwkv_engine", "cpu fp32", "m"), EngineRecord("rwkv", "cpu fp32", "m")]
    engines = [(Asked(log, r.engine), r) for r in records]

    def given():
        log.append("memory")
        return 1e9 * len(log)

    measurements = [Measurement("decode", "decode", {}, 5), Measurement("batch 2", "batch", {}, 8, True)]
    rounds.run_rounds(engines, measurements, 2, {0: given}, told.append)
    first = ["memory", ("rwkv_engine", "decode", True), ("rwkv", "decode", True), ("rwkv_engine", "batch", True)]
    back = [("rwkv", "decode", False), "memory", ("rwkv_engine", "decode", False), ("rwkv_engine", "batch", False)]
    again = ["memory", ("rwkv_engine", "decode", False), ("rwkv", "decode", False), ("rwkv_engine", "batch", False)]
    assert log == first + back + again
    # The first round is not recorded; the bandwidth belongs to the decoding right after it.
    assert records[0].series == {"decode": Series(5, [7.0, 10.0], [6e9, 9e9]), "batch 2": Series(8, [8.0, 12.0])}
    assert records[1].series == {"decode": Series(5, [5.0, 11.0])}
    assert told[0] == "warming up: decode, rwkv_engine, cpu fp32"
    assert told[3] == "round 1: decode, rwkv, cpu fp32"
    assert Counter(t.partition(":")[0] for t in told) == {"warming up": 3, "round 1": 3, "round 2": 3}


def test_bandwidth_is_bytes_over_seconds():
    ticks = iter([0, 1, 0, 8, 0, 2] * 2)  # readings of 1, 8 and 2 seconds: the median is 2
    found = ReadBandwidth("cpu", lambda: next(ticks), size=1 << 20)
    assert found.measure() == (1 << 20) / 2
    assert ReadBandwidth("cpu", size=1 << 24).measure() > 1e8


def test_memory_peaks_are_seen_between_start_and_stop():
    watch = MemoryWatch()
    if watch.peaks() is None:
        pytest.skip("known on Linux only")
    before = watch.peaks()["own"]
    watch.start()
    held = bytearray(b"x" * 200_000_000)
    watch.stop()
    del held
    after = watch.peaks()
    assert after["own"] > before + 150_000_000
    assert after["together"] >= after["own"]
