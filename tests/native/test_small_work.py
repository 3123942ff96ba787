"""Work too small to divide stays on one thread: where other programs use the cores, each meeting of threads is slow."""

from __future__ import annotations

import os
import subprocess

import pytest
from test_build import needs_compiler

from rwkv_engine.native import cpu_kernels

# Counts the parallel loops of a process: OpenMP's entry point, put in front of the real one.
COUNTER = """
#include <dlfcn.h>
static long count;
extern "C" long loops() { return count; }
extern "C" void GOMP_parallel(void (*loop)(void*), void* data, unsigned threads, unsigned flags) {
  static const auto real = reinterpret_cast<decltype(&GOMP_parallel)>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  ++count;
  real(loop, data, threads, flags);
}
"""
CODE = """
import ctypes, os, torch
from rwkv_engine import RWKV
from rwkv_engine.ops import linear
from rwkv_engine.ops.tiles import tiled_shape

torch.set_num_threads(2)
loops = ctypes.CDLL(os.environ["LD_PRELOAD"]).loops
engine = RWKV.from_pretrained("tales").engine
_, state = engine.forward(torch.tensor([[1]]))  # which also makes what is kept for later steps
before = loops()
for _ in range(5):
    _, state = engine.forward(torch.tensor([[4]]), state)
small = loops() - before
tiles = torch.zeros(tiled_shape(1024, 1024, torch.float32))
before = loops()
linear(torch.ones(1, 1024), tiles, 1024)
print(small, loops() - before)
"""


@pytest.mark.slow
@needs_compiler
def test_a_small_model_decodes_without_parallel_loops_and_a_large_product_has_one(tmp_path, run_python):
    if cpu_kernels.status().path is None or "libgomp" not in "".join(cpu_kernels.openmp_runtimes()):
        pytest.skip("needs compiled kernels over GNU's OpenMP")
    (tmp_path / "counter.cpp").write_text(COUNTER)
    library = tmp_path / "counter.so"
    compiler = os.environ.get("CXX", "").split() or ["c++"]
    subprocess.run(
        [*compiler, "-shared", "-fPIC", str(tmp_path / "counter.cpp"), "-o", str(library), "-ldl"], check=True
    )
    result = run_python(CODE, LD_PRELOAD=str(library))
    assert result.stdout == "0 1\n", result.stderr
