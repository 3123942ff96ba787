"""A program as the rwkv package's own examples are, run by it and by `compat`: only its imports differ."""

from __future__ import annotations

import json
import re
from importlib.metadata import distribution
from importlib.util import find_spec

import oracle
import pytest
from checkpoint_files import save_pth
from oracle import Shape

from rwkv_engine import Checkpoint
from rwkv_engine.pipeline import EMBEDDED

# The calls, in the order, of the demonstration in the package's description: environment, model, pipeline, a text with
# bans and penalties piece by piece, logits, a state continued; then a program's own loop, as its chat example has one.
PROGRAM = """
import copy, json, os, sys

os.environ["RWKV_JIT_ON"] = "0"
os.environ["RWKV_CUDA_ON"] = "0"

import numpy as np
from rwkv.model import RWKV
from rwkv.utils import PIPELINE, PIPELINE_ARGS

model = RWKV(model=sys.argv[1], strategy="cpu fp32")
pipeline = PIPELINE(model, sys.argv[2]EXACT)
np.random.seed(7)
print("BEGIN")

prompt = "\\nThe old miller looked at the river and said to his daughter:"
args = PIPELINE_ARGS(
    temperature=1.1, top_p=0.7, top_k=100, alpha_frequency=0.25, alpha_presence=0.25, alpha_decay=0.997,
    token_ban=[0], token_stop=[], chunk_len=256,
)
pipeline.generate(prompt, token_count=120, args=args, callback=lambda piece: print(piece, end="", flush=True))
print()

logits, state = model.forward([187, 510, 1563, 310, 247], None)
print("LOGITS", json.dumps(logits.detach().cpu().numpy()[:200].tolist()))
logits, state = model.forward([187, 510], None)
logits, state = model.forward([1563], state)
logits, state = model.forward([310, 247], state)
print("LOGITS", json.dumps(logits.detach().cpu().numpy()[:200].tolist()))

start = copy.deepcopy(state)
for turn in range(2):
    state = copy.deepcopy(start)
    tokens = pipeline.encode(pipeline.refine_context("Hello there. \\n\\n How are you?"))
    while tokens:
        logits, state = model.forward(tokens[:4], state)
        tokens = tokens[4:]
    written, shown, seen = [], 0, {}
    for i in range(40):
        for token in seen:
            logits[token] -= 0.4 + 0.4 * seen[token]
        logits[0] = -1e9
        token = pipeline.sample_logits(logits, temperature=0.9, top_p=0.8)
        seen = {t: 0.99 * n for t, n in seen.items()}
        seen[token] = seen.get(token, 0) + 1
        logits, state = model.forward([token], state)
        written.append(token)
        piece = pipeline.decode(written[shown:])
        if "\\ufffd" not in piece:
            print(piece, end="", flush=True)
            shown = i + 1
    print(written)
"""


needs_the_package = pytest.mark.skipif(find_spec("rwkv") is None, reason="the rwkv package is not installed")


@pytest.mark.slow
@needs_the_package
def test_the_same_program_prints_the_same(run_python, tmp_path):
    weights = oracle.random_weights(Shape(n_layer=3, n_embd=32, n_att=32, n_ffn=96, n_vocab=2048))
    path = str(save_pth(weights, tmp_path / "m.pth"))[: -len(".pth")]
    texts, numbers = [], []
    for name, exact in (("rwkv", ""), ("rwkv_engine.compat", ", exact=True")):
        program = PROGRAM.replace("from rwkv.", f"from {name}.").replace("EXACT", exact)
        result = run_python(program, path, str(EMBEDDED["tales"] / "tokenizer.json"))
        assert result.returncode == 0, result.stderr
        lines = result.stdout[result.stdout.index("BEGIN") :].splitlines()
        texts.append([line for line in lines if not line.startswith("LOGITS")])
        numbers.append([json.loads(line.removeprefix("LOGITS")) for line in lines if line.startswith("LOGITS")])
    assert texts[0] == texts[1]
    assert len("".join(texts[0])) > 300
    theirs, ours = numbers
    for got, expected in zip(ours, theirs, strict=True):
        assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) < 1e-4 * max(map(abs, expected))


# Changed in the published example: which model, on what, with which vocabulary, how long a text, and no RWKV-7.
CHANGES = {
    r"""^os\.environ\["RWKV_V7_ON"\].*$""": 'os.environ["RWKV_V7_ON"] = "0"',
    r"""^os\.environ\['RWKV_JIT_ON'\].*$""": 'os.environ["RWKV_JIT_ON"] = "0"',
    r"""model=['"].*?['"], strategy=['"].*?['"]""": 'model=sys.argv[1], strategy="cpu fp32"',
    r"""PIPELINE\(model, .*?\)""": "PIPELINE(model, sys.argv[2]EXACT)",
    r"""token_count=500""": "token_count=200",
}


@pytest.mark.slow
@needs_the_package
def test_the_packages_published_example_prints_the_same(run_python, tmp_path):
    """The first program of its description, as it is installed beside it."""
    [program, *_] = re.findall(
        r"^```python\n(.*?)^```$", distribution("rwkv").read_text("METADATA"), re.MULTILINE | re.DOTALL
    )
    for pattern, replacement in CHANGES.items():
        program, found = re.subn(pattern, replacement, program, flags=re.MULTILINE)
        assert found, f"the example has changed: {pattern}"
    program = "import sys\nimport numpy\nnumpy.random.seed(0)\n" + program
    model = Checkpoint.open(EMBEDDED["tales"])
    weights = {name: model.read(name).float().numpy() for name in model.names}
    path = str(save_pth(weights, tmp_path / "m.pth"))[: -len(".pth")]
    parts = []
    for name, exact in (("rwkv", ""), ("rwkv_engine.compat", ", exact=True")):
        mine = program.replace("from rwkv.", f"from {name}.").replace("EXACT", exact)
        assert mine.count(f"from {name}.") == 2
        result = run_python(mine, path, str(EMBEDDED["tales"] / "tokenizer.json"))
        assert result.returncode == 0, result.stderr
        printed = result.stdout[result.stdout.index("User: ") :]
        parts.append(re.split(r"(-?\d+\.\d+(?:e[+-]\d+)?)", printed))
    theirs, ours = parts
    assert [part.split() for part in ours[::2]] == [part.split() for part in theirs[::2]]
    assert len("".join(ours[::2])) > 150
    assert len(ours[1::2]) >= 12, "numpy shows the ends of two rows of logits"
    assert [float(x) for x in ours[1::2]] == pytest.approx([float(x) for x in theirs[1::2]], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_without_exact_it_runs_too(monkeypatch, capsys, tmp_path):
    for name in ("RWKV_JIT_ON", "RWKV_CUDA_ON"):
        monkeypatch.setenv(name, "0")  # which the program does too, and does not undo
    path = save_pth(oracle.random_weights(Shape(n_vocab=2048)), tmp_path / "m.pth")
    monkeypatch.setattr("sys.argv", ["program", str(path), str(EMBEDDED["tales"] / "tokenizer.json")])
    program = PROGRAM.replace("from rwkv.", "from rwkv_engine.compat.").replace("EXACT", "")
    exec(compile(program, "program.py", "exec"), {})
    assert capsys.readouterr().out.count("LOGITS") == 2
