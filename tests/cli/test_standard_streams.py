"""Standard streams that are closed, full or of a narrow encoding; text that is not UTF-8; interrupted imports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from rwkv_engine.cli.group import COMMANDS

pytestmark = pytest.mark.slow  # every test starts processes of its own

FEW = "--max-new-tokens 3 --seed 1"


def shell(line: str, data: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs `line` in a shell where $RWKV is the command."""
    variables = os.environ | {"RWKV": f"{sys.executable} -m rwkv_engine"} | environment
    return subprocess.run(
        ["bash", "-c", line], input=data, capture_output=True, cwd=ROOT, env=variables, timeout=120, check=False
    )


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """The error of a command that failed; chat greets before it."""
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.decode().splitlines() if not line.startswith("tales, template")]
    assert len(lines) == 1, lines
    return lines[0]


FULL = "standard output: cannot be written: No space left on device"
CLOSED = "standard output: cannot be written: it is closed"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("$RWKV --help > /dev/full", FULL),
        ("$RWKV --version >&-", CLOSED),
        ("$RWKV generate --help >&-", CLOSED),
        (f"$RWKV generate hi {FEW} > /dev/full", FULL),
        (f"$RWKV generate hi {FEW} >&-", CLOSED),
        ("$RWKV info tales >&-", CLOSED),
        ("echo a line | $RWKV embed tales > /dev/full", FULL),
        ("echo a text | $RWKV eval --text - --json >&-", CLOSED),
        (f"echo Hello | $RWKV chat {FEW} > /dev/full", FULL),
        (f"echo Hello | $RWKV chat {FEW} >&-", CLOSED),
        (f"$RWKV generate {FEW} --file - <&-", "standard input: cannot be read: it is closed"),
        ("$RWKV chat <&-", "standard input: cannot be read: it is closed"),
        ("$RWKV embed tales <&-", "standard input: cannot be read: it is closed"),
        ("$RWKV eval --text - <&-", "standard input: cannot be read: it is closed"),
    ],
)
def test_a_stream_that_cannot_be_used_is_one_line(line, message):
    assert one_line(shell(line)) == f"rwkv-engine: error: {message}"


def test_a_closed_standard_error_does_not_stop_a_command():
    result = shell(f"$RWKV generate hi {FEW} 2>&-")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"hi")


@pytest.mark.parametrize(
    ("line", "code", "output"),
    [
        (f"$RWKV generate hi {FEW} 2> /dev/full", 0, b"hi"),
        ("$RWKV info no-such-model 2> /dev/full", 1, b""),
        ("$RWKV info --no-such-option 2> /dev/full", 2, b""),
        (f"$RWKV generate hi {FEW} > /dev/full 2> /dev/full", 1, b""),
    ],
)
def test_a_full_standard_error_does_not_stop_a_command(line, code, output):
    result = shell(line)
    assert result.returncode == code
    assert result.stdout.startswith(output)


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path):
    code = "from rwkv_engine.cli.streams import standard_streams\n"
    code += "with standard_streams(): print(open('README.md').fileno(), file=__import__('sys').stderr)"
    result = shell(f'{sys.executable} -c "{code}" <&- >&-')
    assert result.stderr == b"3\n"


def test_a_character_that_standard_output_cannot_encode_is_named():
    result = shell(f"$RWKV generate 'a \u72d0' {FEW} | cat; exit ${{PIPESTATUS[0]}}", PYTHONIOENCODING="cp1252")
    assert one_line(result) == (
        r"rwkv-engine: error: standard output: its encoding cp1252 cannot represent '\u72d0';"
        " set the environment variable PYTHONIOENCODING=utf-8"
    )


def test_the_prompt_comes_from_a_pipe_if_there_is_none(tales, call):
    expected = "The fox" + tales.generate("The fox", max_new_tokens=3, seed=1) + "\n"
    assert shell(f"$RWKV generate {FEW}", b"The fox\n").stdout.decode() == expected
    assert call("generate", *FEW.split(), "--file", "-", stdin=b"The fox\n")[1] == expected
    _, output, _ = call("generate", *FEW.split(), "--each-line", "--json", stdin=b"The fox\nThe king\n")
    assert output.count('{"prompt": "The ') == 2


@pytest.mark.parametrize("line", ["$RWKV generate {} < /dev/null", "$RWKV generate {} <&-", "$RWKV generate '' {}"])
def test_without_a_prompt_the_model_begins_a_text_of_its_own(line, tales):
    expected = tales.generate("", max_new_tokens=3, seed=1) + "\n"
    assert shell(line.format(FEW)).stdout.decode() == expected


def test_a_given_prompt_leaves_standard_input_to_others():
    result = shell(f"(read line; $RWKV generate hi {FEW} > /dev/null; cat)", b"first\nsecond\n")
    assert result.stdout == b"second\n"


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "command",
    [
        f"generate {FEW} --file FILE",
        f"generate {FEW} --file -",
        f"generate {FEW} --json",
        "embed tales FILE",
        "embed tales",
        "eval --json --text FILE",
        f"chat {FEW}",
    ],
)
def test_a_byte_order_mark_is_not_part_of_a_text(command, call, tmp_path):
    def output(data: bytes) -> str:
        path = tmp_path / "input"
        path.write_bytes(data)
        arguments = [str(path) if word == "FILE" else word for word in command.split()]
        code, text, messages = call(*arguments, stdin=data)
        assert (code, bool(text)) == (0, True), messages
        return re.sub(r'"tokens_per_second.*', "", text)

    assert output(MARK + b"The fox\n") == output(b"The fox\n")


def test_text_that_is_not_utf8_is_refused_with_the_reason_first():
    result = shell("$RWKV chat", b"\xff\xfe\n")
    assert one_line(result).startswith("error: standard input, line 1: expected UTF-8 text: ")
    assert "UTF-16" in one_line(result)
    result = shell("$RWKV generate --file -", b"caf\xe9")
    assert one_line(result).startswith("rwkv-engine: error: standard input: expected UTF-8 text: ")


def seconds_of_processor(line: str) -> float:
    before = os.times()
    assert shell(line).returncode == 0
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_and_version_do_not_wait_for_torch():
    heavy = "torch", "numpy", "tokenizers", "huggingface_hub", "rich", "prompt_toolkit"
    code = "import sys; from rwkv_engine import cli\ntry: cli.main()\n"
    code += f"finally: print([name for name in {heavy} if name in sys.modules])"
    for argument in ("--help", "--version", "-h"):
        result = shell(f'{sys.executable} -c "{code}" {argument}')
        assert result.stdout.endswith(b"[]\n"), result
    assert seconds_of_processor("$RWKV --help") < 0.5


def test_the_list_of_commands_names_what_there_is(call):
    code, listed, _ = call("--help")
    assert code == 0
    for name, (_, _, line) in COMMANDS.items():
        assert f"{name:<8}  {line}" in listed
        code, text, _ = call(name, "--help")
        assert code == 0
        assert re.match(rf"Usage: .*rwkv-engine {name} ", text)


SLOW_IMPORT = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("importing", flush=True)
            try:
                time.sleep(30)
            except BaseException:  # as some modules do
                pass
sys.meta_path.insert(0, Slow())
sys.argv[:1] = ["rwkv-engine"]
from rwkv_engine.cli import main
main()
"""


def test_ctrl_c_during_an_import_ends_the_command_quietly():
    command = [sys.executable, "-c", SLOW_IMPORT, "generate", "hi", "--max-new-tokens", "3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"importing\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (130, b"", b"")
