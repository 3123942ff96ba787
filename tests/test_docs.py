"""Every code block in the README and docs/ runs and prints what the page shows, or is marked with why it cannot run."""

from __future__ import annotations

import doctest
import importlib.util
import io
import os
import re
import shutil
import sys
from pathlib import Path

import oracle
import pytest
import torch
from checkpoint_files import save_hugging_face
from conftest import ROOT
from oracle import Shape
from snippets import REASONS, RUNNABLE, Block, Command, blocks_of, commands_of, excerpts_of

from rwkv_engine import Checkpoint
from rwkv_engine.pipeline import EMBEDDED
from rwkv_engine.verification import run as verification

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# Options appended to commands that would take minutes; of an option given twice, the last one counts.
SMALLER = {
    "bench": {
        "--shape": ["2,32,256"],
        "--compare": ["rwkv"],
        "--rounds": ["1"],
        "--starts": ["1"],
        "--decode": ["2"],
        "--prefill": ["8"],
        "--batch": ["1,2"],
    },
    "eval": {"--self": ["64"]},
}
ALWAYS = ("--rounds", "--starts", "--decode", "--prefill", "--batch")
STORY = """\
Once upon a time there was a fox who lived in a wood.
Every morning he went to the river to look at the moon.
"""


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """The files that pages mention; the embedded model takes the place of the models that a reader has."""
    folder = tmp_path_factory.mktemp("files")
    tales = EMBEDDED["tales"]
    (folder / "RWKV").mkdir()
    shutil.copytree(tales, folder / "RWKV" / "rwkv-raven-1b5")
    checkpoint = Checkpoint.open(tales)
    tensors = {name: checkpoint.read(name).clone() for name in checkpoint.names}
    torch.save(
        {name: t.reshape(1, 1, -1) if "time_mix" in name else t for name, t in tensors.items()},
        folder / "RWKV-4-Raven-1B5.pth",
    )
    shutil.copy(tales / "tokenizer.json", folder / "20B_tokenizer.json")
    deep = Shape(n_layer=12, n_embd=16, n_att=16, n_ffn=32, n_vocab=256)
    save_hugging_face(oracle.random_weights(deep), deep, folder / "MODEL")
    (folder / "story.txt").write_text(STORY, encoding="utf-8")
    (folder / "prompts.txt").write_text("The fox\nThe king\n", encoding="utf-8")
    (folder / "questions.txt").write_text("Who are you?\nWhere do you live?\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch) -> Path:
    """The working directory of a page's blocks, with those files in it."""
    here = tmp_path / "here"
    shutil.copytree(files, here, copy_function=os.link)
    monkeypatch.chdir(here)
    monkeypatch.setattr(verification, "RUNNERS", {})  # tests/cli/test_verify.py asks them
    return here


@pytest.fixture
def run(folder, monkeypatch, capfd):
    """A function that runs a block and returns its output."""
    # Imported here, so that collecting tests does not need what only the commands need.
    from rwkv_engine.cli import main

    def run_command(command: Command) -> tuple[int, str]:
        program, *arguments = command.words
        assert program == "rwkv-engine", f"{program}: expected rwkv-engine; mark blocks that run other programs"
        monkeypatch.setattr(sys, "argv", [program, *arguments, *smaller(arguments)])
        text = (folder / command.reads).read_text(encoding="utf-8") if command.reads else ""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        output = capfd.readouterr()
        if command.writes:
            (folder / command.writes).write_text(output.out, encoding="utf-8")
            return code, ""
        return code, output.out or output.err

    def run_block(block: Block, namespace: dict) -> str:
        capfd.readouterr()
        if block.language == "python":
            # Preceding blank lines make an error message show the line of the page.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, ROOT / block.page, "exec", dont_inherit=True), namespace)
            return capfd.readouterr().out
        commands = list(commands_of(block.code))
        if "run" in block.marks:
            commands = [command for command in commands if command.words[0] == "rwkv-engine"]
        assert commands, f"{block}: no command"
        printed, codes = "", []
        for command in commands:
            code, text = run_command(command)
            codes.append(code)
            printed += text
        expected = [0] * (len(codes) - 1) + [int(block.marks.get("fails", 0))]
        assert codes == expected, f"{block}: exit codes {codes}, expected {expected}:\n{printed}"
        return printed

    return run_block


def smaller(arguments: list[str]) -> list[str]:
    """The options that make a command fast enough for a test."""
    options = SMALLER.get(arguments[0], {}) if "--help" not in arguments else {}
    return [word for name, value in options.items() if name in (*ALWAYS, *arguments) for word in (name, *value)]


def is_shown(shown: str, printed: str) -> bool:
    """Compares outputs, ignoring differences in white space; `...` matches anything."""
    return doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


def quotes(block: Block) -> bool:
    """Whether the file that a block names contains all of its code."""
    text = (ROOT / block.title).read_text(encoding="utf-8")
    return all(part in text for part in excerpts_of(block.code))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_block_of_a_page_runs(name, run):
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = blocks_of(name, text)
    marked, checked = 0, 0
    namespace = {"__name__": name}
    for block in blocks:
        if "not run" in block.marks or "test" in block.marks:
            marked += 1
        elif block.title:
            assert quotes(block), f"{block}: {block.title} has changed; update the quotation"
            checked += 1
        elif block.language in RUNNABLE:
            printed = run(block, namespace)
            assert block.shown is None or is_shown(block.shown, printed), (
                f"{block}: printed\n{printed}\nbut the page shows\n{block.shown}"
            )
            checked += 1
        else:
            assert block.language == "text", f"{block}: got {block.language!r}, expected python, sh, text or a title"
            checked += 1
    shown = sum(block.shown is not None for block in blocks)
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    assert 2 * (marked + checked + shown) == fences, f"{name}: some blocks were not recognised"


@pytest.mark.parametrize("name", NAMES)
def test_marks_give_a_reason(name):
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for block in blocks_of(name, (ROOT / name).read_text(encoding="utf-8")):
        assert block.marks.get("not run", REASONS[0]).startswith(REASONS), f"{block}: expected one of {REASONS}"
        for mark in {"run", "test"} & block.marks.keys():
            assert name == "README.md", f"{block}: .ci/run reads README.md only"
            assert f"readme_command {mark}" in ci, f"{block}: .ci/run does not run it"


def test_readme_shows_generated_text_by_line_30():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme[: readme.index("```text")].count("\n") + 1 <= 30


def test_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150, "move details to docs/"


def test_the_plan_picture_is_up_to_date():
    spec = importlib.util.spec_from_file_location("draw_plan", ROOT / "tools" / "draw_plan.py")
    draw_plan = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_plan)
    drawn = (ROOT / "docs" / "plan.svg").read_text(encoding="utf-8")
    assert drawn == draw_plan.picture(), "run python tools/draw_plan.py"
