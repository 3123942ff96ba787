"""The comparison of two source trees: a fair order, and processes that import the tree they are meant for."""

from __future__ import annotations

import importlib.util

import pytest
from conftest import ROOT


@pytest.fixture
def before_after():
    spec = importlib.util.spec_from_file_location("before_after", ROOT / "bench" / "before_after.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trees_take_turns_and_the_first_round_is_dropped(before_after, monkeypatch):
    log = []

    class Fake:
        def __init__(self, tree, path, strategy, prompt):
            self.tree = tree

        def __enter__(self):
            return self

        def __exit__(self, *_):
            log.append(f"end {self.tree}")

        def rate(self, what, tokens):
            log.append(f"{what} {self.tree}")
            return float(len(log))

    monkeypatch.setattr(before_after, "Tree", Fake)
    found = before_after.measure({"old": "a", "new": "b"}, "m", "cpu fp32", {"decode": 4, "prefill": 8}, 1, 2)
    ahead = ["decode a", "decode b", "prefill a", "prefill b"]
    back = ["decode b", "decode a", "prefill b", "prefill a"]
    assert log == [*ahead, *back, *ahead, "end b", "end a"]
    assert found == {
        "decode": {"old": [6.0, 9.0], "new": [5.0, 10.0]},
        "prefill": {"old": [8.0, 11.0], "new": [7.0, 12.0]},
    }


@pytest.mark.slow
def test_a_process_runs_the_code_of_its_tree(before_after, tales, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with before_after.Tree(ROOT, tales.source, "cpu fp32", 8) as tree:
        assert tree.rate("decode", 2) > 0
        assert tree.rate("prefill", 8) > 0
    (tmp_path / "rwkv_engine").mkdir()  # no package: the one on PYTHONPATH would be measured in its place
    with pytest.raises(SystemExit, match=f"{tmp_path}: the process with cpu fp32 ended with code 1"):
        before_after.Tree(tmp_path, tales.source, "cpu fp32", 8)
    assert f"{tmp_path}: expected rwkv_engine there, imported it from {ROOT}" in capfd.readouterr().err
