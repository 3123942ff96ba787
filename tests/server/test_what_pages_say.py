"""The pages about the server name each of its options, error codes and metrics, and no others."""

from __future__ import annotations

import ast
import re

from conftest import ROOT
from served import begun

from rwkv_engine.cli.serve import serve

PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("serving.md", "states.md", "cluster.md")}
OTHERS = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("formats.md", "strategies.md", "page.md")]
# The position of the code among the arguments of what raises an error.
ERRORS = {"ApiError": 3, "StateRefused": 1, "SessionError": 1}


def constants(node):
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def codes_of(source):
    found = set()
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ERRORS:
            place = ERRORS[call.func.id]
            given = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            for node in (*call.args[place : place + 1], *given):
                found |= constants(node)
    return found


def test_options():
    text = "\n".join([*PAGES.values(), *OTHERS])
    names = [name for option in serve.params for name in (*option.opts, *option.secondary_opts)]
    missing = [name for name in names if name.startswith("--") and not re.search(rf"(?<![\w-]){name}\b(?!-)", text)]
    assert missing == ["--page"], "which is the default, and --no-page is explained"


def test_error_codes():
    sources = [file for part in ("server", "portable") for file in (ROOT / "rwkv_engine" / part).glob("*.py")]
    raised = set().union(*(codes_of(file.read_text(encoding="utf-8")) for file in sources))
    assert len(raised) > 20
    text = "\n".join(PAGES.values())
    assert not [code for code in raised if f"`{code}`" not in text]
    rows = re.findall(r"^\| \d{3}[\d, ]* \| ([^|]+) \|", text, re.MULTILINE)
    assert {code for cell in rows for code in re.findall(r"`(\w+)`", cell)} <= raised


def test_metrics(tales):
    page = begun(tales).metrics.page().decode()
    served = {name for name in re.findall(r"^# TYPE (rwkv_\w+)", page, re.MULTILINE) if not name.endswith("_created")}
    assert set(re.findall(r"`(rwkv_\w+)[`{]", PAGES["serving.md"])) - {"rwkv_engine"} == served
