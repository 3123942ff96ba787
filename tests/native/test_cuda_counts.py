"""The counts of the CUDA path: the parser of machine code, and the kernels that calls launch."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import ROOT

from rwkv_engine import RWKV
from rwkv_engine.generation import SamplingParams
from rwkv_engine.generation.draw import Draw
from rwkv_engine.ops import draw_tokens, linear_many


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


launches, sass = tool("launches"), tool("sass")
# As nvdisasm prints it: a load of weights, three loads, a use of the second, then one load into a register that is
# waited for, and a store.
CODE = """\
	.section	.text._Z1k,"ax",@progbits
.text._Z1k:
        .type           _Z1k,@function
        /*0000*/                   LDG.E.EF.128.CONSTANT R24, desc[UR8][R4.64] ;
        /*0010*/              @!P0 LDG.E R8, desc[UR8][R2.64] ;
        /*0020*/                   LDG.E.CONSTANT R9, desc[UR8][R2.64+0x4] ;
.L_x_1:
        /*0030*/                   LDG.E R10, desc[UR8][R6.64] ;
        /*0040*/                   FADD R9, R9, R3 ;
        /*0050*/                   LDG.E R8, desc[UR8][R2.64] ;
        /*0060*/                   STS [R12+0x10], R8 ;
.text._Z1m:
        /*0000*/                   LDG.E R8, desc[UR8][R2.64] ;
        /*0010*/                   LDG.E R11, desc[UR8][R8.64] ;
"""


def test_loads_count_up_to_the_first_that_is_waited_for():
    found = sass.functions(CODE)
    assert {name: len(code) for name, code in found.items()} == {"_Z1k": 7, "_Z1m": 2}
    assert found["_Z1k"][1] == ("LDG.E", "R8, desc[UR8][R2.64]")
    assert {name: sass.loads_in_flight(code) for name, code in found.items()} == {"_Z1k": 3, "_Z1m": 1}


def test_a_reference_counts_where_there_is_no_kernel_and_views_do_not():
    x, weight = torch.randn(3, 4), torch.randn(5, 4)

    def work() -> None:
        linear_many(x, weight.t().contiguous(), 5)  # the copy, and on a GPU torch's product
        draw_tokens(x, torch.ones(3, dtype=torch.float64), *rows)

    rows = (torch.zeros(3, dtype=torch.int64), *(torch.ones(3, dtype=torch.float64) / 2 for _ in range(3)))
    counts = launches.counted(work)
    assert counts["draw_tokens"] == 2
    assert "linear_many" not in counts
    assert counts["mm"] + counts["linear"] == 1
    assert "t" not in counts


@pytest.mark.slow
def test_a_token_launches_what_the_documentation_says():
    model = RWKV.from_pretrained("tales").engine.model
    counts = {
        name: launches.beside_the_layers(model, draw)
        for name, draw in {"greedy": Draw(0.0), "temperature": Draw(1.0), "top-p": Draw(0.8, top_p=0.9)}.items()
    }
    assert {name: sum(count.values()) - count["copy_"] for name, count in counts.items()} == {
        "greedy": 3,
        "temperature": 4,
        "top-p": 4,
    }
    assert {count["copy_"] for count in counts.values()} == {2}


SAMPLED = {
    "greedy": SamplingParams(temperature=0),
    "cut": SamplingParams(top_k=9, top_p=0.9, seed=1),
    "penalties": SamplingParams(presence_penalty=0.5, seed=1),
    "mask": SamplingParams(allowed_tokens=lambda _: np.full(2048 // 32, -1, dtype=np.int32), seed=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("params", SAMPLED.values(), ids=SAMPLED)
def test_a_generated_token_is_one_captured_graph(params):
    model = RWKV.from_pretrained("tales", "cpu fp16").engine.model
    assert not launches.around_a_replay(model, params)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_chunk_launches_what_the_documentation_says(dtype):
    model = RWKV.from_pretrained("tales", f"cpu {dtype}").engine.model
    assert launches.of_a_chunk(model, 200, 24) == 492
