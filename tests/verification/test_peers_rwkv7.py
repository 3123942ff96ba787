"""The `rwkv` package as the live peer of RWKV-7 in `verify` and `bench`."""

from __future__ import annotations

import json

import oracle7
import pytest
from checkpoint_files import save_packed, save_pth

from rwkv_engine import RequestError
from rwkv_engine.benchmark import lineup
from rwkv_engine.core import Rwkv7Config
from rwkv_engine.verification import baselines, verify

SHAPE = oracle7.Shape(n_layer=2, n_head=2, head_size=64, n_ffn=100, n_vocab=300)
CONFIG = Rwkv7Config(2, 128, 2, 64, 100, 300, 5, 3, 7, 4)


@pytest.fixture
def path(tmp_path):
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    return save_pth(oracle7.random_weights(SHAPE, unused=True), tmp_path / "goose.pth")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pth", "packed"])
def test_the_rwkv_package_agrees(kind, path, tmp_path):
    if kind == "packed":
        path = save_packed(oracle7.random_weights(SHAPE), tmp_path / "p.safetensors")
    checks = {check.name: check for check in verify(path)}
    assert checks["rwkv"].verdict == "ok", checks["rwkv"]
    assert checks["rwkv"].numbers["difference"] < 1e-5
    assert checks["rwkv"].numbers["same_tokens"] == checks["rwkv"].numbers["tokens"]
    assert checks["transformers"].what.endswith("transformers is compared with for RWKV-4, this is RWKV-7")


@pytest.mark.slow
def test_a_run_is_compared_with_the_rwkv_package(path, call, tmp_path):
    sizes = ("--rounds=2", "--starts=1", "--decode=4", "--prefill=8", "--batch=1")
    report = tmp_path / "bench.json"
    code, text, errors = call("bench", str(path), *sizes, "--compare", "rwkv", "--json", str(report))
    assert (code, errors) == (0, "")
    assert text.count("| rwkv 0.8.32, cpu fp32 ") == 3
    _, theirs = json.loads(report.read_text())["engines"]
    assert list(theirs["series"]) == ["decode", "prefill 8"]


def test_strategies_that_the_packages_rwkv7_does_not_know_are_refused(tmp_path):
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    [dense] = lineup.runnable(["cpu bf16"], CONFIG)
    specs, _ = lineup.lineup([dense.with_weights("i8")], ["rwkv"], None, tmp_path, CONFIG)
    assert str(specs[1].strategy) == "cpu bf16"
    [split] = lineup.runnable(["cpu fp32 *1 -> cpu bf16"], CONFIG)
    with pytest.raises(RequestError, match="the rwkv package's RWKV-7 runs on one device in fp32, bf16 or fp16"):
        lineup.lineup([split], ["rwkv"], None, tmp_path, CONFIG)
    assert baselines.unsupported("transformers", CONFIG) is not None
