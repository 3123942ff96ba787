"""Docs and README tell the truth: every block runs, prints what is shown beneath it, or says why it is not run."""

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
from rwkv_engine.cli import main
from rwkv_engine.pipeline import EMBEDDED
from rwkv_engine.verification import run as verification

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# What would take minutes is run with these options behind its own: the last one of a kind counts.
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
    """The files that pages speak of: the embedded model stands in for all that a reader has on his disk."""
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
    """Where a page's blocks run, with those files in it."""
    here = tmp_path / "here"
    shutil.copytree(files, here, copy_function=os.link)
    monkeypatch.chdir(here)
    monkeypatch.setattr(verification, "RUNNERS", {})  # tests/cli/test_verify.py asks them
    return here


@pytest.fixture
def run(folder, monkeypatch, capfd):
    """Runs a block; returns what it printed."""

    def run_command(command: Command) -> tuple[int, str]:
        program, *arguments = command.words
        assert program == "rwkv-engine", f"{program}: expected rwkv-engine; blocks of other programs are marked"
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
            # Blank lines before it, so that an error names the page's line.
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
    """Options that make a command quick."""
    options = SMALLER.get(arguments[0], {}) if "--help" not in arguments else {}
    return [word for name, value in options.items() if name in (*ALWAYS, *arguments) for word in (name, *value)]


def is_shown(shown: str, printed: str) -> bool:
    """Spaces and the ends of lines may differ, and `...` stands for anything."""
    return doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


def quotes(block: Block) -> bool:
    """Whether all of a block stands in the file it names."""
    text = (ROOT / block.title).read_text(encoding="utf-8")
    return all(part in text for part in excerpts_of(block.code))


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
            assert quotes(block), f"{block}: {block.title} has changed, quote it anew"
            checked += 1
        elif block.language in RUNNABLE:
            printed = run(block, namespace)
            assert block.shown is None or is_shown(block.shown, printed), (
                f"{block}: prints\n{printed}\nwhere the page shows\n{block.shown}"
            )
            checked += 1
        else:
            assert block.language == "text", f"{block}: got {block.language!r}, expected python, sh, text or a title"
            checked += 1
    shown = sum(block.shown is not None for block in blocks)
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    assert 2 * (marked + checked + shown) == fences, f"{name}: blocks were overlooked"


@pytest.mark.parametrize("name", NAMES)
def test_marks_say_why(name):
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for block in blocks_of(name, (ROOT / name).read_text(encoding="utf-8")):
        assert block.marks.get("not run", REASONS[0]).startswith(REASONS), f"{block}: expected one of {REASONS}"
        for mark in {"run", "test"} & block.marks.keys():
            assert name == "README.md", f"{block}: .ci/run reads README.md alone"
            assert f"readme_command {mark}" in ci, f"{block}: .ci/run does not run it"


def test_readme_text_comes_by_line_30():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme[: readme.index("```text")].count("\n") + 1 <= 30


def test_the_picture_is_drawn_anew():
    spec = importlib.util.spec_from_file_location("draw_plan", ROOT / "tools" / "draw_plan.py")
    draw_plan = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_plan)
    drawn = (ROOT / "docs" / "plan.svg").read_text(encoding="utf-8")
    assert drawn == draw_plan.picture(), "run python tools/draw_plan.py"
