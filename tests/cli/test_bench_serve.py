"""`rwkv-engine bench --serve`."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from rwkv_engine.verification import baselines

TINY = ["--serve", "--shape=2,32,100", "--requests=4", "--rate=50", "--prompts=2-6", "--answers=3"]


@pytest.mark.slow
def test_a_run_compared_with_the_rwkv_package(call, tmp_path):
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    file, picture = tmp_path / "serve.json", tmp_path / "serve.png"
    draws = find_spec("matplotlib") is not None
    plot = ["--plot", str(picture)] if draws else []
    code, text, errors = call("bench", *TINY, "--rounds=2", "--compare", "rwkv", "--json", str(file), *plot)
    assert (code, errors) == (0, "")
    for title in (
        "requests as they arrive ",
        "16 texts at once, 16 + 64 tokens ",
        "gap between tokens of 8 texts, ms ",
    ):
        assert f"\n| {title}" in text
    assert "4 requests, 50 a second; prompts of 2 to 6 tokens, answers of 3; seed 1\n" in text
    found = json.loads(file.read_text())
    assert found["machine"]["command"].startswith("rwkv-engine bench --serve")
    ways = [(way["engine"], way["together"]) for way in found["ways"]]
    assert ways == [("rwkv_engine", True), ("rwkv_engine", False), ("rwkv", False)]
    for way in found["ways"]:
        assert [[len(times) for times in each] for each in way["arriving"]] == [[3] * 4] * 2
        assert [[len(times) for times in each] for each in way["at_once"]] == [[64] * 16] * 2
        assert len(way["beside"]) == (2 if way["together"] else 0)
    assert found["ways"][0]["summary"]["at_once_times_as_fast"].keys() == {
        "rwkv_engine, cpu fp32, one by one",
        "rwkv 0.8.32, cpu fp32, one by one",
    }
    if draws:
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert picture.stat().st_size > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "3"], "--rate needs --serve"),
        (["--seed", "1"], "--seed needs --serve"),
        (["--serve", "--batch", "4"], "--batch is not for --serve"),
        (["--serve", "--prompts", "9-2"], "'9-2': expected a range of tokens such as 16-256, or one number"),
        (["--serve", "--answers", "0"], "'0': expected a range of tokens"),
        (["--serve", "--rate", "0"], "0.0 is not in the range"),
        (["--serve", "--compare", "rwkv,transformers"], "--serve compares with rwkv alone, got --compare rwkv,trans"),
    ],
)
def test_invalid_options_are_refused_before_a_model_is_written(arguments, message, call, monkeypatch):
    monkeypatch.setattr("rwkv_engine.cli.bench.synthetic_model", None)
    monkeypatch.setattr("rwkv_engine.cli.bench.serve", None)
    monkeypatch.setattr(baselines, "find_spec", lambda name: True)
    code, text, errors = call("bench", *arguments)
    assert (code, text) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
