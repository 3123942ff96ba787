"""What converting costs in memory, measured in processes of their own."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from rwkv_engine import Rwkv4Config

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

MEASURE = """
import json, sys, threading

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

peak, done = {"RssAnon": 0, "RssFile": 0}, threading.Event()

def watch():
    while not done.wait(0.001):
        for name in peak:
            peak[name] = max(peak[name], kilobytes(name))

import torch
from pathlib import Path
from rwkv_engine import Rwkv4Config
from rwkv_engine.convert import to_hugging_face, to_pth
source, output, dtype = sys.argv[1:]
before = {name: kilobytes(name) for name in peak}
thread = threading.Thread(target=watch); thread.start()
write = to_pth if output.endswith(".pth") else to_hugging_face
write(Path(source), Path(output), dtype=getattr(torch, dtype))
done.set(); thread.join()
print(json.dumps({"anonymous": peak["RssAnon"] * 1024, **{n: (peak[n] - before[n]) * 1024 for n in peak}}))
"""


@pytest.fixture(scope="module")
def large():
    """52 M parameters, 105 MB in bfloat16; the embedding and the head have 16 MB each."""
    shapes = Rwkv4Config(n_layer=4, n_embd=1024, n_att=1024, n_ffn=3072, n_vocab=8000).tensor_shapes()
    return {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "output"), [("pth", "hf"), ("safetensors", "out.pth")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_converting_holds_one_tensor(kind, output, dtype, large, tmp_path, run_python):
    source = tmp_path / f"m.{kind}"
    (torch.save if kind == "pth" else save_file)(large, source)
    # Large pieces are given back to the system at once, so that what is seen is what is held.
    arguments = str(source), str(tmp_path / output), dtype
    result = run_python(MEASURE, *arguments, MALLOC_MMAP_THRESHOLD_="1000000", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    largest = 8000 * 1024 * (4 if dtype == "float32" else 2)
    assert seen["anonymous"] < largest + 400e6, seen
    # Sharper, without what Python and torch themselves take: what keeps its type is never copied at all.
    assert seen["RssAnon"] < (1.3 * largest if dtype == "float32" else 0) + 8e6, seen
    assert seen["RssFile"] < 60e6, seen
