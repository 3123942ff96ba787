"""The README tells the truth: its Python runs, and its sample is what its command prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_the_sample_is_what_the_command_prints():
    command = next(part for part in blocks("sh")[0].split("&&") if "rwkv-engine" in part)
    program, *arguments = shlex.split(command)
    assert program == "rwkv-engine"
    result = subprocess.run(
        [sys.executable, "-m", "rwkv_engine", *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.split() == blocks("text")[0].split(), "the README wraps lines, nothing else"


def test_the_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [code] = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 200
    assert (tmp_path / "fox.state").is_file()


def test_text_comes_by_line_30():
    first_text = README[: README.index("```text")].count("\n") + 1
    assert first_text <= 30
