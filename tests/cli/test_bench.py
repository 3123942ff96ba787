from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from rwkv_engine.benchmark import lineup
from rwkv_engine.verification import baselines

TINY = ["--shape=2,32,100", "--rounds=2", "--starts=1", "--decode=4", "--prefill=8,16", "--batch=1,20"]


@pytest.mark.slow
def test_a_run_compared_with_the_rwkv_package(call, tmp_path, monkeypatch):
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    file = tmp_path / "bench.json"
    arguments = (*TINY, "--ffn-zeros", "0.5", "--position", "300", "--compare", "rwkv", "--json", str(file))
    code, text, errors = call("bench", *arguments)
    assert (code, errors) == (0, "")
    assert re.search(
        r"^random weights, shape 2,32,100: .* stored as float32, 50% zeros in the squared ReLU$", text, re.M
    )
    by_size = ("prefill, tok/s ", "batch, tok/s in all ", "texts of the scheduler, tok/s in all ")
    for title in ("decode ", *by_size, "ms a token ", "process "):
        assert f"\n| {title}" in text
    assert text.count("| rwkv 0.8.32, cpu fp32 ") == 3
    assert list(temporary.iterdir()) == [], "the model is gone"

    found = json.loads(file.read_text())
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert found["machine"]["command"].endswith(f"--json {file}")
    assert found["machine"].keys() >= {"processor", "cores", "threads", "memory_bytes", "instructions", "started"}
    assert found["model"]["config"]["n_embd"] == 32
    assert found["settings"]["position"] == 300
    ours, theirs = found["engines"]
    names = ["decode", "prefill 8", "prefill 16", "batch 1", "batch 20", "texts 1", "position 100", "position 300"]
    assert list(ours["series"]) == names
    assert list(theirs["series"]) == names[:3]
    for series in (*ours["series"].values(), *theirs["series"].values()):
        assert len(series["seconds"]) == 2
        assert min(series["seconds"]) > 0
    assert len(ours["series"]["decode"]["bandwidth"]) == len(theirs["series"]["decode"]["bandwidth"]) == 2
    assert ours["series"]["batch 20"]["tokens"] == 80
    assert ours["zeros"] == pytest.approx([0.5, 0.5], abs=0.2)
    assert theirs["zeros"] == [0, 0]
    assert 0.8 < ours["bytes_per_token"] / theirs["bytes_per_token"] < 1
    assert len(ours["first_token"]) == 1
    assert 0.1 < ours["first_token"][0] < 60
    assert theirs["first_token"] == []
    assert ours["summary"]["times_as_fast"]["rwkv 0.8.32, cpu fp32"].keys() == set(names[:3])


@pytest.mark.slow
def test_a_packed_model_and_its_picture(call, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    picture = tmp_path / "bench.png"
    few = ["--packed", "--rounds=1", "--starts=1", "--batch=1", "--prefill=16"]
    code, text, errors = call("bench", "tales", *few, "--plot", str(picture), "--json", str(tmp_path / "j"))
    assert (code, errors) == (0, "")
    assert text.startswith("tales: 3.9 M parameters, stored as float16\n")
    assert json.loads((tmp_path / "j").read_text())["engines"][0]["file"] == "packed-0.safetensors"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size > 20_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tales", "--shape", "169m"], 2, "give MODEL or --shape, not both"),
        (["tales", "--ffn-zeros", "0.5"], 2, "--ffn-zeros is for random weights"),
        (["--ffn-zeros", "1.5"], 2, "1.5 is not in the range"),
        (["--compare-strategy", "cpu fp32"], 2, "--compare-strategy needs --compare"),
        (["--compare", "rwkv,vllm"], 2, "'vllm': expected one or more of rwkv, transformers"),
        (["--prefill", "16,x"], 2, "'16,x': expected positive numbers, each once, such as 16,256,1024, or none"),
        (["--batch", "0"], 2, "'0': expected positive numbers, each once"),
        (["--batch", "2,2"], 2, "'2,2': expected positive numbers, each once"),
        (["--position", "100"], 2, "100 is not in the range"),
        (["--plot", "x.jpg"], 2, "--plot x.jpg: expected a name that ends in .png"),
        (["--json", "missing/x.json"], 2, "missing/x.json: there is no folder missing"),
        (["--shape", "7b"], 1, "shape: got '7b', expected one of"),
        (["missing.pth"], 1, "missing.pth: no such file"),
        (["--strategy", "cpu fp64"], 1, "strategy: expected a precision"),
        (["--strategy", "cpu fp32 *3"], 1, "strategy: 10 layers are not assigned"),
        (["--shape", "90,20000,50000"], 1, "memory: 1 engines at once need about"),
        (
            ["--compare", "transformers", "--strategy", "cpu fp32 *1 -> cpu bf16"],
            1,
            "compare: transformers runs on one",
        ),
    ],
)
def test_invalid_options_are_refused_before_a_model_is_written(arguments, code, message, call, monkeypatch):
    monkeypatch.setattr("rwkv_engine.cli.bench.synthetic_model", None)
    monkeypatch.setattr("rwkv_engine.cli.bench.bench", None)
    monkeypatch.setattr(baselines, "find_spec", lambda name: True)
    found, text, errors = call("bench", *arguments)
    assert (found, text) == (code, "")
    assert message in errors
    assert "Traceback" not in errors


def test_missing_programs_are_named_with_how_to_install_them(call, monkeypatch):
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    monkeypatch.setattr("rwkv_engine.cli.bench.find_spec", lambda name: None)
    advice = "is not installed; pip install 'rwkv-engine[bench]'\n"
    for arguments, what in (
        (("--compare", "rwkv"), "compare: rwkv"),
        (("--compare", "transformers"), "compare: transformers"),
        (("--plot", "x.png"), "plot: matplotlib"),
    ):
        assert call("bench", *arguments) == (1, "", f"rwkv-engine: error: {what} {advice}")


def test_other_programs_run_the_same_strategy_without_int8(tales):
    ours = lineup.runnable(["cpu fp32i8 *2->cpu bf16i8", "cpu fp32 *2 -> cpu bf16"], tales.config)
    specs, compared = lineup.lineup(ours, ["rwkv"], None, Path("m"), tales.config)
    assert [str(spec.strategy) for spec in specs[2:]] == ["cpu fp32 *2 -> cpu bf16"], "one process serves both"
    assert compared == {0: [2], 1: [2]}
    ours = lineup.runnable(["cpu fp32i8", " cpu  fp32i8"], tales.config)
    assert len(ours) == 1
    specs, _ = lineup.lineup(ours, ["rwkv", "transformers"], "cpu  bf16", Path("m"), tales.config)
    assert [str(spec) for spec in specs[1:]] == ["rwkv, cpu bf16", "transformers, cpu bf16"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "rwkv_engine", "bench", *TINY, "--rounds", "100000"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 60
    while not (workers := children.read_text().split()) and time.monotonic() < until:
        time.sleep(0.05)
    assert workers
    assert len(list(tmp_path.glob("rwkv-engine-bench.*/model.pth"))) == 1
    os.killpg(process.pid, number)  # as a terminal does: to all that belong to it
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    # One that was just being started is not known yet; it ends by itself, when nobody is there to ask it.
    until = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
