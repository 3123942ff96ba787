"""kill -9 at random moments of a conversion: the old directory or the new one, never half of one."""

from __future__ import annotations

import json
import sys

import oracle
import pytest
from checkpoint_files import save_pth
from oracle import Shape

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills forked children")

# Two models take turns. Each child converts the one that is not there, and is killed at a random moment of the time
# that takes; what is found then must be one of the two, file by file, and what the user has there.
KILLED = """
import hashlib, json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)  # threads do not survive a fork
from rwkv_engine.convert import to_hugging_face
from rwkv_engine.checkpoints import Checkpoint

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
output, models = folder / "out", [folder / "a.pth", folder / "b.pth"]
sizes = [10**9, 20_000]  # one file, or several with an index: names of one are not those of the other

def convert(i):
    to_hugging_face(models[i], output, shard_size=sizes[i])

def found():
    files = [p for p in output.rglob("*") if p.is_file()]
    return {str(p.relative_to(output)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

whole, prints = [], []
for i in (0, 1, 0):
    started = time.perf_counter()
    convert(i)
    if i == 0:
        (output / "notes").mkdir(exist_ok=True)
        (output / "notes" / "mine.txt").write_text("mine")
    whole.append(found())
duration = time.perf_counter() - started
assert whole.pop() == whole[0] and whole[0].keys() != whole[1].keys()
assert all("notes/mine.txt" in files for files in whole)
prints = [Checkpoint.open(model).fingerprint() for model in models]

random.seed(0)
now, seen, killed, begun = 0, [], 0, time.perf_counter()
while killed < kills and time.perf_counter() - begun < 60:
    child = os.fork()
    if child == 0:
        convert(1 - now)
        os._exit(0)
    time.sleep(random.uniform(0, 1.1 * duration))
    os.kill(child, signal.SIGKILL)
    died = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    files = found()
    assert files in whole, sorted(files)
    after = whole.index(files)
    assert Checkpoint.open(output).fingerprint() == prints[after]
    if died:
        killed += 1
        seen.append(after != now)
    now = after
convert(1 - now)
assert found() == whole[1 - now]
left = [p.name for p in folder.iterdir() if p.name.startswith(".out.")]
print(json.dumps({"killed": killed, "new": sum(seen), "left": len(left), "milliseconds": duration * 1000}))
"""


@pytest.mark.slow
def test_a_conversion_killed_fifty_times_leaves_whole_files(tmp_path, run_python):
    shape = Shape(n_layer=3, n_embd=48, n_att=48, n_ffn=96, n_vocab=300)
    for seed, name in enumerate("ab"):
        save_pth(oracle.random_weights(shape, seed), tmp_path / f"{name}.pth")
    result = run_python(KILLED, str(tmp_path), "50", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["killed"] == 50, seen
    assert seen["left"] > 0, "no conversion was killed while it was writing"  # how many depends on the load
    print(seen)
