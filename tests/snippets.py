"""Parses the code blocks of documentation pages.

A page is Markdown. A comment directly above a block, `<!-- NAME: TEXT -->`, is a mark on that block; `MARKS` lists the
possible names. A ```text block directly below a block that runs shows the expected output of that block.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

# The names of marks, and the meaning of their texts.
MARKS = {
    "not run": "the reason, which begins with one of REASONS",
    "fails": "the exit code that its last command must have",
    "run": "run as a whole by .ci/run; tests run only the commands of rwkv-engine",
    "test": "run by .ci/run only",
}
REASONS = ("needs a network", "needs a GPU", "takes minutes", "installs")
RUNNABLE = ("python", "sh")
_OPENING = re.compile(r"^( *)```(\w*) *(.*)$")
_MARK = re.compile(r"^ *<!-- ([a-z ]+?)(?:: (.*))? -->$")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: path of the page.
        line: line number of the first line of code.
        language: the word after the opening fence.
        title: path of the file that the block quotes; empty if it quotes none.
        code: the lines without the indentation of the fence.
        marks: texts of the marks by name.
        shown: the expected output; None if the page shows none.
    """

    page: str
    line: int
    language: str
    title: str
    code: str
    marks: dict[str, str] = field(default_factory=dict)
    shown: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One shell command: its words, and the files that its input and output are redirected to, if any."""

    words: list[str]
    reads: str | None = None
    writes: str | None = None


def blocks_of(page: str, text: str) -> list[Block]:
    """All blocks of a page, in order."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    adjoining = False  # whether there were only blank lines since the last block
    lines = enumerate(text.splitlines(), start=1)
    for number, line in lines:
        if mark := _MARK.match(line):
            assert mark[1] in MARKS, f"{page}:{number}: got <!-- {mark[1]} -->, expected one of {', '.join(MARKS)}"
            marks[mark[1]] = mark[2] or ""
            adjoining = False
        elif opening := _OPENING.match(line):
            indent, language, rest = opening.groups()
            code = "".join(_inside(f"{page}:{number}", indent, lines))
            if language == "text" and adjoining and not marks and found[-1].language in RUNNABLE:
                found[-1] = replace(found[-1], shown=code)
            else:
                title = _TITLE.search(rest)
                found.append(Block(page, number + 1, language, title[1] if title else "", code, marks))
            marks, adjoining = {}, True
        elif line.strip():
            assert not marks, f"{page}:{number}: a mark without a block below it"
            adjoining = False
    return found


def _inside(where: str, indent: str, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    for _, line in lines:
        if line.strip() == "```":
            return
        yield line.removeprefix(indent) + "\n"
    raise AssertionError(f"{where}: a block without a closing fence")


def commands_of(code: str) -> Iterator[Command]:
    """The commands of a shell block; comments are removed."""
    for line in code.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars=True)
        reader.whitespace_split = True
        words: list[str] = []
        for word in [*reader, "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield _redirected(words)
                words = []


def _redirected(words: list[str]) -> Command:
    files = {}
    for sign in "<>":
        if sign in words:
            at = words.index(sign)
            files[sign] = words[at + 1]
            del words[at : at + 2]
    return Command(words, files.get("<"), files.get(">"))


def excerpts_of(code: str) -> list[str]:
    """The parts of a file that a block quotes; a line of three dots separates them."""
    parts = re.split(r"^[ /#]*\.\.\.\n", code, flags=re.MULTILINE)
    return [part.strip("\n") for part in parts if part.strip()]
