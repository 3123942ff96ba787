"""The house's rules about who may know whom."""

from __future__ import annotations

import ast
import re

import pytest
from conftest import ROOT

PACKAGE = ROOT / "rwkv_engine"
RANKS = [
    {"errors", "notices", "progress", "_version"},
    {"checks"},
    {"native", "storage"},
    {"core", "hub", "ops", "text"},
    {"checkpoints", "locate"},
    {"models"},
    {"runtime"},
    {"caching", "portable", "structured"},
    {"embedding", "generation"},  # below pipeline: RWKV.embed calls it
    {"pipeline"},
    {"chat", "convert", "evaluation", "verification"},
    {"auto", "benchmark", "compat", "ray_data", "sentence"},
    {"server"},
    {"cli"},
    {"hub_upload", "packing"},  # names of release 0.2
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem not in ("__init__", "__main__"))


def part_of(path):
    """`core` for rwkv_engine/core/state.py, `pipeline` for rwkv_engine/pipeline.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rwkv_engine"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("rwkv_engine.")]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    part = part_of(path)
    if part == "assets":
        return
    for other in imported_parts(path):
        assert other == part or RANK[other] < RANK[part], f"{part} must not import {other}"


def sources(folder):
    return [p for p in (ROOT / "csrc" / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]


def test_kernels_know_no_torch():
    kernels = sources("kernels")
    assert kernels
    for path in kernels:
        assert not re.search(r'#include *[<"](torch|ATen|c10|pybind11)/', path.read_text()), path


def test_bindings_launch_and_no_more():
    bindings = sources("bindings")
    assert bindings
    for path in bindings:
        text = path.read_text()
        assert "torch/extension.h" not in text, path
        assert "<<<" not in text, path


def test_files_have_one_idea():
    for path in [*FILES, *sources("kernels"), *sources("bindings")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, f"{path}: divide it"


def test_public_names():
    import rwkv_engine

    assert len(set(rwkv_engine.__all__)) == len(rwkv_engine.__all__) <= 15  # ruff keeps them sorted
    for name in rwkv_engine.__all__:
        assert getattr(rwkv_engine, name) is not None
