"""Worker processes: they answer, sleep, and report why they ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from rwkv_engine.benchmark.lineup import EngineSpec
from rwkv_engine.benchmark.process import START, Worker
from rwkv_engine.core import Strategy
from rwkv_engine.errors import BenchmarkError

TALES = ROOT / "rwkv_engine" / "assets" / "tales"


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_a_worker_answers_then_sleeps_and_reports_how_it_ended():
    with Worker(EngineSpec("rwkv_engine", Strategy.parse("cpu fp32"), TALES)) as worker:
        worker.ask("read", ids=[5, 6, 7])
        assert 0 < worker.ask("decode", tokens=32) < 60
        assert worker.ask("about")["version"]
        told = []
        assert len(worker.ask("write", lambda *parts: told.append(parts), tokens=3)) == 3
        assert told == [(1, 3), (2, 3), (3, 3)]
        assert worker.ask("memory") is None or worker.ask("memory")["own"] > 10**7
        pid = worker._process.pid
        if Path(f"/proc/{pid}/stat").exists():
            time.sleep(0.1)
            before = processor_seconds(pid)
            time.sleep(0.5)
            assert processor_seconds(pid) - before <= 0.02, (
                "its threads must sleep, not spin, while others are measured"
            )
        os.kill(pid, 9)
        with pytest.raises(
            BenchmarkError, match=r"rwkv_engine, cpu fp32: was ended by signal 9; was there enough memory"
        ):
            worker.ask("decode", tokens=1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_failing_engine_is_reported_in_one_line(tmp_path):
    with Worker(EngineSpec("rwkv", Strategy.parse("cpu fp32"), tmp_path / "missing.pth")) as worker:
        with pytest.raises(BenchmarkError) as raised:
            worker.ask("about")
        assert str(raised.value).startswith(f"rwkv, cpu fp32: {tmp_path}/missing.pth: no such file")
        assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_worker_whose_parent_has_ended_says_nothing(tmp_path):
    """Its model is gone, too, and nobody is there to be told."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["rwkv_engine", str(tmp_path / "missing.pth"), "cpu fp32"]
    command = [sys.executable, "-c", START, json.dumps([sys.path, arguments])]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
