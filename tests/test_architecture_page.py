"""The page on adding an architecture names files that exist, and all of those that are named after RWKV-7."""

from __future__ import annotations

import re

from conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_its_files_exist():
    paths = re.findall(r"`((?:rwkv_engine|csrc|tests|bench)/\S+)`", PAGE)
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).is_file(), path


def test_no_module_of_the_version_is_left_out():
    for path in (ROOT / "rwkv_engine").rglob("*7*.py"):
        if "rwkv7" in path.name or path.name == "wkv7.py":
            assert f"`{path.relative_to(ROOT)}`" in PAGE, path
