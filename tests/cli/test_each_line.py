"""`rwkv-engine generate --each-line`: lines are continued together, and a run that broke off is resumed."""

from __future__ import annotations

import json

import pytest

PROMPTS = ["The fox", "The kïng", "", "Once upon a time"]
OPTIONS = ["--max-new-tokens", "6", "--seed", "1", "--each-line"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(tales):
    return [tales.generate(prompt, 6, seed=1) for prompt in PROMPTS]


def test_texts_are_printed_in_order(call, file, expected):
    code, text, errors = call("generate", "--file", str(file), *OPTIONS)
    assert code == 0, errors
    assert text == "".join(prompt + after + "\n" for prompt, after in zip(PROMPTS, expected, strict=True))
    assert errors.startswith("continued 4 prompts by 24 tokens at ")


def test_what_lines_begin_with_is_read_once(call, tales, tmp_path):
    prompts = [f"Once upon a time there was a king who had a castle with a garden and {n} trees. A" for n in range(40)]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(prompts))
    code, text, errors = call("generate", "--file", str(path), *OPTIONS)
    assert code == 0, errors
    assert text == "".join(f"{prompt}{tales.generate(prompt, 6, seed=1)}\n" for prompt in prompts)
    assert "tokens that prompts begin with were known from earlier ones" in errors


def results(text):
    return {record["index"]: (record["prompt"], record["text"]) for record in map(json.loads, text.splitlines())}


def test_a_run_that_broke_off_is_resumed(call, file, expected, tmp_path):
    out = tmp_path / "out.jsonl"
    arguments = ["generate", "--file", str(file), *OPTIONS, "--json", "--resume", str(out)]
    code, text, errors = call(*arguments)
    assert (code, text) == (0, ""), errors
    whole = out.read_bytes()
    wanted = dict(enumerate(zip(PROMPTS, expected, strict=True)))
    assert results(whole.decode()) == wanted
    lines = whole.splitlines(keepends=True)
    for left in (whole, b"", lines[0], lines[0] + lines[1][:-1], lines[0] + lines[1][: len(lines[1]) // 2]):
        out.write_bytes(left)
        code, _, errors = call(*arguments)
        assert code == 0, errors
        assert results(out.read_text(encoding="utf-8")) == wanted
        n = left.count(b"\n")
        assert f"continued {4 - n} prompts" in errors
        assert (f"{out}: contains {n} of 4 results\n" in errors) == (n > 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("noise\n", "out.jsonl, line 1: expected a result of --each-line --json"),
        ("[1]\n", "out.jsonl, line 1: expected a result of --each-line --json"),
        ('{"index": 0, "prompt": "The fox"}\n{"index": 9, "prompt": "A"}\n', "line 2: is the result of other prompts"),
        ('{"index": 1, "prompt": "The fox"}\n', "line 1: is the result of other prompts; resume with those"),
    ],
)
def test_files_of_something_else_are_refused_and_kept(content, message, call, file, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    code, text, errors = call("generate", "--file", str(file), *OPTIONS, "--json", "--resume", str(out))
    assert (code, text) == (1, "")
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert out.read_text() == content


def test_a_file_that_cannot_be_written_is_one_line(call, file, tmp_path):
    for name in ("nowhere/out.jsonl", ""):
        path = str(tmp_path / name)
        code, text, errors = call("generate", "--file", str(file), *OPTIONS, "--json", "--resume", path)
        assert code in (1, 2)
        assert text == ""
        assert "out.jsonl: cannot be written: No such file or directory" in errors or "is a directory" in errors


@pytest.mark.parametrize("options", [["--resume", "x"], ["--json", "--resume", "x"], ["--each-line", "--resume", "x"]])
def test_resume_needs_lines_and_json(options, call, file):
    code, _, errors = call("generate", "--file", str(file), *options)
    assert code == 2
    assert "--resume needs --each-line and --json" in errors
