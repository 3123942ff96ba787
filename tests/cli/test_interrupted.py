"""Commands that write a file, stopped in the middle: the old file or the new one, never half of one."""

from __future__ import annotations

import re
import signal

import pytest

from rwkv_engine import RWKV

INTERRUPTED = """
import os, resource, sys
from rwkv_engine import cli
from rwkv_engine.convert import pack as packing
real = packing.{command}
def until_half(*arguments, **named):
    *others, progress = arguments
    def tell(done, total):
        progress(done, total)
        if done > total / 2:
            {event}
    return real(*others, tell, **named)
packing.{command} = until_half
sys.argv[:1] = ["rwkv-engine", "{command}"]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pack", "quantize"])
@pytest.mark.parametrize(
    ("event", "code", "left", "message"),
    [
        (f"os.kill(os.getpid(), {int(signal.SIGINT)})", 130, r"", r""),
        (f"os.kill(os.getpid(), {int(signal.SIGKILL)})", -signal.SIGKILL, r"\.out\.safetensors\..+", r""),
        (
            "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))",  # fails as a full disk does
            1,
            r"",
            r"rwkv-engine: error: .*out\.safetensors: cannot be written: File too large\n",
        ),
    ],
    ids=["ctrl-c", "kill", "full disk"],
)
def test_the_old_file_stays_whatever_happens(event, code, left, message, command, source, run_python):
    path = source.with_name("out.safetensors")
    path.write_bytes(b"old")
    result = run_python(INTERRUPTED.format(command=command, event=event), str(source), "-o", str(path))
    assert result.returncode == code, result.stderr
    assert path.read_bytes() == b"old"
    assert "Traceback" not in result.stderr
    assert re.search(message + r"\Z", result.stderr)
    others = [p.name for p in source.parent.iterdir() if p not in (source, path)]
    assert re.fullmatch(left, "".join(others))
    assert RWKV.from_pretrained(source)
