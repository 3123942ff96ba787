"""OpenAI's client for JavaScript, where there is node, and `require` finds the package openai in NODE_PATH."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from served import in_thread


@pytest.mark.slow
def test_the_client_for_javascript(tales):
    node = shutil.which("node")
    if not node or subprocess.run([node, "-e", "require('openai')"], capture_output=True, check=False).returncode:
        pytest.skip("needs node, and the package openai in NODE_PATH")
    server, thread = in_thread(tales)
    try:
        command = [node, str(Path(__file__).with_name("client.cjs")), f"{server.url}/v1"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(20)
    assert ran.returncode == 0, ran.stderr
    got = json.loads(ran.stdout)
    assert got["models"] == ["tales"]
    assert got["whole"] == tales.generate("The king", 12, seed=3)
    assert got["reply"] == got["streamed"] != ""
    assert got["vector"] == pytest.approx(tales.embed("The fox", normalize=True).tolist(), abs=1e-6)
    assert got["error"] == {"status": 400, "param": "temperature"}
