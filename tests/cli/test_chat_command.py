"""`rwkv-engine chat`, driven through a terminal and through a pipe."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

COMMAND = ["-m", "rwkv_engine", "chat", "--seed", "3"]


@pytest.fixture
def terminal(tmp_path):
    """A chat behind a terminal; `PROMPT_TOOLKIT_NO_CPR`, for nobody here answers where the cursor is."""
    pexpect = pytest.importorskip("pexpect", reason="pexpect is not installed")
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
    arguments = [*COMMAND, "--max-new-tokens", "100000", "--ban", "0", "--presence-penalty", "0"]
    child = pexpect.spawn(
        sys.executable, arguments, cwd=ROOT, env=environment, encoding="utf-8", timeout=60, dimensions=(40, 200)
    )
    child.EOF = pexpect.EOF
    yield child
    child.close(force=True)


# The line editor asks for bracketed paste while it reads a line, and only then.
PROMPT, ENTERED = r"\[\?2004h", r"\[\?2004l"
WORDS = r"[a-z]{2,} [a-z]{2,}"


@pytest.mark.slow
def test_a_conversation_in_a_terminal(terminal, tmp_path):
    saved = tmp_path / "talk.state"

    def send(line: str, *answers: str) -> None:
        terminal.sendline(line)
        for expected in (ENTERED, *answers, PROMPT):
            terminal.expect(expected)

    for expected in ("template bob-alice.*/help for help", PROMPT):
        terminal.expect(expected)
    send("/help", "Ctrl-C stops a reply")
    for line in ("Tell me a very long tale.", "/retry"):
        terminal.sendline(line)
        for expected in (ENTERED, WORDS):
            terminal.expect(expected)
        terminal.sendintr()  # ends the reply, not the program
        terminal.expect(PROMPT)
    send(f"/save {saved}")
    assert saved.is_file()
    send("/undo")
    send("/undo", "error: nothing was said")
    send("/sing", "error: /sing: no such command; /help lists them")
    send(f"/load {saved}", "Bob: Tell me a very long tale")
    send("/reset")
    terminal.send("a line that is dropped")
    terminal.expect("dropped")
    terminal.sendintr()
    terminal.expect(PROMPT)
    terminal.sendcontrol("d")
    terminal.expect(terminal.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0
    history = (tmp_path / "rwkv_engine" / "chat_history").read_text()
    assert "+Tell me a very long tale." in history
    assert "dropped" not in history


def pipe(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *COMMAND, "--max-new-tokens", "15", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


@pytest.mark.slow
def test_a_conversation_through_a_pipe(tmp_path):
    about = tmp_path / "about.txt"
    about.write_text("A king lived in a castle.")
    talk = f"//slash\n/retry\n\n/save {tmp_path}/talk\n/input {about}\nWho lived there?\n/exit\nnever read\n"
    result = pipe(talk, "--template", "instruction")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().split("\n\n")) >= 3
    assert "rwkv" not in result.stdout
    loaded = pipe(f"/load {tmp_path}/talk\n")
    assert "# Instruction:\n/slash\n" in loaded.stdout


@pytest.mark.slow
def test_mistakes_in_a_pipe_are_lines_and_exit_code_1(tmp_path):
    result = pipe(f"/save\n/load {tmp_path}/nothing\n/undo\n/input {tmp_path}/nothing\n/dance\n")
    assert (result.returncode, result.stdout) == (1, "")
    _, *errors = result.stderr.splitlines()
    assert len(errors) == 5
    assert all(line.startswith("error: ") for line in errors)
