"""A program for the `rwkv` package with `RWKV_V7_ON=1`, and the same program with its imports changed."""

from __future__ import annotations

import os
import subprocess
import sys

import oracle7
import pytest
import torch
from checkpoint_files import save_pth

import rwkv_engine
from rwkv_engine import RequestError, State
from rwkv_engine.compat.model import RWKV
from rwkv_engine.core import rwkv4_layouts, rwkv7_layouts

SHAPE = oracle7.Shape(n_layer=2, n_head=1, head_size=64, n_ffn=100, n_vocab=65536)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
PROGRAM = """
import os, sys
os.environ["RWKV_V7_ON"], os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"] = "1", "0", "0"
import torch
from rwkv.model import RWKV
from rwkv.utils import PIPELINE, PIPELINE_ARGS

model = RWKV(model=sys.argv[1], strategy="cpu fp32")
pipeline = PIPELINE(model, "rwkv_vocab_v20230424")
full, state = model.forward([3, 1, 4, 1, 5], None, full_output=True)
kept = [x.clone() for x in state]
last, after = model.forward([9], state)
assert after is not state and all(torch.equal(a, b) for a, b in zip(state, kept))
single, state = model.forward(2, after)
begun, other = model.forward([3, 1], model.generate_zero_state())
again, _ = model.forward([9, 2], kept)
text = pipeline.generate("The king", token_count=12, args=PIPELINE_ARGS(top_k=1, token_ban=[0]), state=kept)
sizes = model.n_layer, model.n_embd, model.n_head, model.head_size, model.args.vocab_size, model.args.head_size
torch.save({"logits": [full, last, single, begun, again], "states": state + other + kept, "text": text, "sizes": sizes},
           sys.argv[2])
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_pth(oracle7.random_weights(SHAPE), tmp_path_factory.mktemp("compat") / "m.pth")


@pytest.mark.slow
def test_a_program_runs_after_a_change_of_its_imports(path, tmp_path):
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    results = []
    for program in (PROGRAM, PROGRAM.replace("from rwkv.", "from rwkv_engine.compat.")):
        command = [sys.executable, "-c", program, str(path.with_suffix("")), str(tmp_path / "result")]
        subprocess.run(command, check=True, timeout=120, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
        results.append(torch.load(tmp_path / "result", weights_only=True))
    theirs, ours = results
    assert ours["text"] == theirs["text"]
    assert ours["sizes"] == theirs["sizes"]
    assert len(ours["states"]) == len(theirs["states"]) == 3 * 3 * SHAPE.n_layer
    for kind in ("logits", "states"):
        for got, expected in zip(ours[kind], theirs[kind], strict=True):
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
            assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_state_for_the_engine_and_back(path):
    _, state = RWKV(path, "cpu fp32", verbose=False).forward(IDS, None)
    engine = rwkv_engine.RWKV.from_pretrained(path)
    _, expected = engine.forward(IDS)
    moved = rwkv7_layouts.from_layout(state, "rwkv", engine.config, position=len(IDS))
    for name, field in expected.fields.items():
        assert torch.equal(moved.fields[name], field), name
    again = rwkv7_layouts.to_layout(moved, shift_dtype=torch.bfloat16)
    assert [t.dtype for t in again[:3]] == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert torch.equal(again[4], state[4])


def test_states_and_layouts_that_do_not_belong_are_refused(path, tales):
    model = RWKV(path, "cpu fp32", verbose=False)
    _, state = model.forward([1, 2], None)
    with pytest.raises(RequestError, match="got 5 tensors, expected 6"):
        model.forward([1], state[:5])
    with pytest.raises(RequestError, match=r"tensor 1: got float32 \(64, 64\), expected"):
        model.forward([1], [state[0], state[1][0], *state[2:]])
    with pytest.raises(RequestError, match="NaN or infinity in wkv"):
        model.forward([1], [state[0], state[1] / 0, *state[2:]])
    with pytest.raises(RequestError, match="expected rwkv, the only one"):
        rwkv7_layouts.from_layout(state, "transformers", model._config)
    with pytest.raises(RequestError, match="got the config of an RWKV-4"):
        rwkv7_layouts.from_layout(state, "rwkv", tales.config)
    with pytest.raises(RequestError, match="holds states of RWKV-7"):
        rwkv7_layouts.to_layout(State.initial(tales.config))
    with pytest.raises(RequestError, match="holds states of RWKV-4"):
        rwkv4_layouts.from_layout(state, "rwkv", model._config)
    with pytest.raises(RequestError, match="holds one sequence"):
        rwkv7_layouts.to_layout(State.initial(model._config, 2))


def test_the_variable_refuses_a_file_of_the_other_version(path, monkeypatch, capsys):
    monkeypatch.setenv("RWKV_V7_ON", "1")
    with pytest.raises(RequestError, match=r"asks for RWKV-7, .*tales is RWKV-4"):
        RWKV("tales", "cpu fp32", verbose=False)
    monkeypatch.setenv("RWKV_V7_ON", "0")
    assert RWKV(path, "cpu fp32").version == 7
    assert "RWKV-7, 2 layers" in capsys.readouterr().out
