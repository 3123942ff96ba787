from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape

from rwkv_engine import RWKV

LINES = [
    "There was a king.",
    "He had a fée for a daughter.",
    " ",
    "A\ffox\u2028and a hen.",
    "No",
    "x" * 300,
]
TEXTS = [line for line in LINES if line.strip()]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\n".join(TEXTS).replace("daughter.\n", "daughter.\r\n").encode())
    return str(path)


@pytest.fixture
def few_at_once(monkeypatch):
    """Lines are held two at a time; what is held is appended to the list."""
    held, real = [], RWKV.embed

    def watched(model, texts, *arguments, **options):
        held.append(list(texts))
        return real(model, texts, *arguments, **options)

    monkeypatch.setattr(RWKV, "embed", watched)
    monkeypatch.setattr(importlib.import_module("rwkv_engine.cli.embed"), "BATCHES", 1)  # the package names the command
    return held


def rows_of(jsonl: str) -> tuple[list[int], list[str], np.ndarray]:
    rows = [json.loads(line) for line in jsonl.removesuffix("\n").split("\n")]
    assert all(list(row) == ["line", "text", "embedding"] for row in rows)
    vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    return [row["line"] for row in rows], [row["text"] for row in rows], vectors


def test_json_lines_are_what_the_library_gives(call, file, tales):
    code, text, errors = call("embed", "tales", file)
    assert (code, errors) == (0, "")
    numbers, texts, vectors = rows_of(text)
    assert numbers == [1, 2, 3, 4, 5]
    assert texts == TEXTS
    assert np.array_equal(vectors, tales.embed(TEXTS).numpy()), "nine digits keep every bit"


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_a_file_in_windows_of_lines_holds_the_same(suffix, call, file, tales, tmp_path, few_at_once):
    output = tmp_path / f"out{suffix}"
    output.write_bytes(b"old" * 10_000)
    options = ["--pooling", "last", "--normalize", "--batch-size", "2"]
    code, text, errors = call("embed", "tales", file, "-o", str(output), *options)
    assert (code, text, errors) == (0, "", f"{output}: 5 lines, 224 numbers each\n")
    assert few_at_once == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]
    vectors = np.load(output) if suffix == ".npy" else rows_of(output.read_text())[2]
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, 224))
    assert np.allclose(vectors, tales.embed(TEXTS, "last", normalize=True).numpy(), rtol=1e-5, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lines.txt", f"out{suffix}"]


def test_blank_lines_are_left_out_if_that_is_asked_for(call, tmp_path, tales):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(["", *LINES]) + "\n\n")
    code, _, errors = call("embed", "tales", str(path))
    assert (code, errors) == (
        1,
        f"rwkv-engine: error: {path}, line 1: is blank, expected a text; --skip-empty leaves it out\n",
    )
    code, text, _ = call("embed", "tales", str(path), "--skip-empty")
    numbers, texts, _ = rows_of(text)
    assert (code, numbers, texts) == (0, [2, 3, 5, 6, 7], TEXTS)


PIPED = "import sys; from rwkv_engine.cli import main; sys.argv[:1] = ['rwkv-engine']; main()"


@pytest.mark.slow
def test_lines_come_from_a_pipe(tmp_path, tales):
    output = tmp_path / "out.npy"
    command = [sys.executable, "-c", PIPED, "embed", "tales", "-o", str(output), "--pooling", "state"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, input="\n".join(TEXTS).encode(), env=environment, check=True, timeout=300)
    assert np.array_equal(np.load(output), tales.embed(TEXTS, "state").numpy())


def test_the_strategy_and_the_model_are_those_asked_for(call, file, tales, tmp_path):
    _, text, _ = call("embed", "tales", file, "--strategy", "cpu bf16")
    vectors = torch.from_numpy(rows_of(text)[2])
    exact = tales.embed(TEXTS)
    assert 1e-4 < (vectors - exact).norm() / exact.norm() < 0.05
    path = save_pth(oracle.random_weights(Shape(n_vocab=256)), tmp_path / "m.pth")
    _, text, _ = call("embed", str(path), file)
    assert rows_of(text)[2].shape == (5, 16)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], r"lines\.txt: cannot be read: "),
        (b"", [], r"lines\.txt: expected at least one line of text, got none"),
        (b"\n\n", ["--skip-empty"], r"lines\.txt: expected at least one line of text, got none"),
        (b"a\nb\ncaf\xe9\n", [], r"lines\.txt, line 3: expected UTF-8 text: "),
        (b"a\n \t\n", [], r"lines\.txt, line 2: is blank, expected a text"),
        (b"a\n", ["--strategy", "cpu fp8"], r"strategy: "),
        (b"a\n", ["-o", "{folder}/missing/out.npy"], r"out\.npy: there is no folder "),
        (b"a\n", ["-o", "{folder}/out.npy/folder.jsonl/.."], r"expected a name that ends in"),
    ],
    ids=str,
)
def test_a_users_mistake_is_one_line_and_leaves_no_file(content, arguments, message, call, tmp_path):
    path = tmp_path / "lines.txt"
    if content is not None:
        path.write_bytes(content)
    arguments = [part.format(folder=tmp_path) for part in arguments]
    if "-o" not in arguments:
        arguments += ["-o", str(tmp_path / "out.npy")]
    code, text, errors = call("embed", "tales", str(path), *arguments)
    assert (code, text) == (2 if "expected a name" in message else 1, "")
    assert re.search(message, errors)
    if code == 1 and "--strategy" not in arguments:  # a strategy is shown with a caret below it
        assert re.fullmatch(r"rwkv-engine: error: .+\n", errors)
    assert list(tmp_path.iterdir()) == ([path] if content is not None else [])


def test_a_folder_is_refused_as_output(call, file, tmp_path):
    (tmp_path / "out.npy").mkdir()
    code, _, errors = call("embed", "tales", file, "-o", str(tmp_path / "out.npy"))
    assert (code, errors) == (
        1,
        f"rwkv-engine: error: {tmp_path / 'out.npy'}: is a directory, not a regular file; nothing was written\n",
    )


STOPPED = """
import importlib, os, resource, sys
from rwkv_engine import cli, pipeline
importlib.import_module("rwkv_engine.cli.embed").BATCHES = 1
real, calls = pipeline.RWKV.embed, []
def third_stops(*arguments):
    calls.append(1)
    if len(calls) == 3:
        {event}
    return real(*arguments)
pipeline.RWKV.embed = third_stops
sys.argv[:1] = ["rwkv-engine"]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "event", "code", "left", "message"),
    [
        (".npy", f"os.kill(os.getpid(), {int(signal.SIGINT)})", 130, r"", r""),
        (".jsonl", f"os.kill(os.getpid(), {int(signal.SIGKILL)})", -signal.SIGKILL, r"\.out\..+", r""),
        (
            ".npy",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))",  # fails as a full disk does
            1,
            r"",
            r"rwkv-engine: error: .*out\..*: cannot be written: File too large\n",
        ),
    ],
    ids=["ctrl-c", "kill", "full disk"],
)
def test_the_old_file_stays_whatever_happens(suffix, event, code, left, message, tmp_path, run_python):
    path, lines = tmp_path / f"out{suffix}", tmp_path / "lines.txt"
    path.write_bytes(b"old")
    lines.write_text("The king had three sons.\n" * 40)
    arguments = ("embed", "tales", str(lines), "-o", str(path), "--batch-size", "3")
    result = run_python(STOPPED.format(event=event), *arguments)
    assert result.returncode == code, result.stderr
    assert path.read_bytes() == b"old"
    assert "Traceback" not in result.stderr
    assert re.search(message + r"\Z", result.stderr)
    assert re.fullmatch(left, "".join(p.name for p in tmp_path.iterdir() if p not in (path, lines)))
