"""How the CUDA library comes to be, or does not, played through with a fake nvcc, GPU and toolkit."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from fake_nvcc import fake_nvcc
from test_build import needs_compiler
from torch.utils import cpp_extension

from rwkv_engine.native import build, cpu_kernels, cuda_kernels, toolkit

BINDING = """
#include <torch/library.h>
at::Tensor twice(const at::Tensor& x) { return x; }
TORCH_LIBRARY(NAMESPACE, m) { m.def("twice(Tensor x) -> Tensor"); }
TORCH_LIBRARY_IMPL(NAMESPACE, CUDA, m) { m.impl("twice", &twice); }
"""
# Notes what it was asked for, and compiles something else.
COMPILING = """
printf '%s\\n' "$@" >"$(dirname "$0")/arguments"
while [ "$1" != -o ]; do shift; done
echo 'int nothing;' | c++ -x c++ -fPIC -c - -o "$2"
"""


def namespace(folder: Path) -> str:
    """Of its own for each test: no operator can be defined twice in a process."""
    return re.sub(r"\W", "_", folder.name)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with torch for CUDA 13, a Hopper, and an nvcc; yields the folder it all lies in."""
    fake_nvcc(tmp_path, compiling=COMPILING)
    for name in ("CC", "CXX", "CUDA_PATH", "RWKV_ENGINE_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (9, 0))
    # torch adds a number to a library's name when a process builds it again from other sources, as tests alone do.
    monkeypatch.setattr(cpp_extension, "JIT_EXTENSION_VERSIONER", cpp_extension.ExtensionVersioner())
    kernel, binding = tmp_path / "twice.cu", tmp_path / "twice_cuda.cpp"
    kernel.write_text("// nothing")
    binding.write_text("// nothing")
    monkeypatch.setattr(build, "cuda_sources", lambda: [binding, kernel])
    for library in ("cudart", "c10_cuda", "torch_cuda"):  # empty: nothing here calls them
        folder = tmp_path / "lib64"
        folder.mkdir(exist_ok=True)
        subprocess.run(["ar", "qc", str(folder / f"lib{library}.a")], check=True)
    return tmp_path


def decide():
    return cuda_kernels.status.__wrapped__()


@pytest.mark.slow
@needs_compiler
def test_it_is_built_once_with_the_flags_of_the_list_and_opened(machine, capsys):
    (machine / "twice_cuda.cpp").write_text(BINDING.replace("NAMESPACE", namespace(machine)))
    first = decide()
    assert (first.kind, first.level) == ("jit", "sm_90"), first.reason
    assert first.path.name.startswith(build.cuda_library_name([90]))
    assert "by nvcc 13.0.88" in first.reason
    assert getattr(torch.ops, namespace(machine)).twice.default.has_kernel_for_dispatch_key(torch._C.DispatchKey.CUDA)
    [line] = capsys.readouterr().err.splitlines()
    assert "compiling the CUDA kernels for sm_90" in line

    arguments = (machine / "bin" / "arguments").read_text().splitlines()
    assert set(build.nvcc_flags([90])) <= set(arguments)
    assert not [a for a in arguments if a.startswith("-gencode") and "90" not in a], "torch adds no architecture"
    assert str(build.source_root()) in " ".join(arguments)

    again = decide()
    assert (again.path, again.level) == (first.path, "sm_90")
    assert "built here earlier" in again.reason
    assert capsys.readouterr().err == ""


@needs_compiler
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "x.cu(3): error: expected a ';'",
            "nvcc 13.0.88 could not build the kernels: x.cu(3): error: expected a ';' (",
        ),
        ("h.h:1: error: #error -- unsupported GNU version!", "install an older one and set CC=g++-13"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_90'", "install another CUDA toolkit"),
    ],
)
def test_a_failed_build_is_quoted_and_the_reference_serves(said, expected, machine, capsys):
    fake_nvcc(machine, compiling=f'echo "{said}" >&2; exit 1')
    status = decide()
    assert status.kind == "reference"
    assert expected in status.reason
    compiling, said_aloud = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rwkv_engine: ")]
    assert "compiling the CUDA kernels" in compiling
    assert said_aloud.endswith(f"on the GPU, slower but correct: {status.reason}")
    assert not list((machine / "cache" / "rwkv_engine").glob("*.so"))
    assert list((machine / "cache" / "rwkv_engine").glob("*.log"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("get_device_capability", lambda i: (6, 1), "a GPU here is sm_61, the kernels need sm_75"),
        ("device_count", lambda: 0, "torch sees no GPU"),
    ],
)
def test_problems_are_reported_once_before_compilation(name, value, expected, machine, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, name, value)
    status = decide()
    assert (status.kind, status.path) == ("reference", None)
    assert status.reason.startswith(expected)
    [line] = capsys.readouterr().err.splitlines()
    assert status.reason in line
    assert not (machine / "cache").exists()


def test_the_reference_can_be_asked_for(machine, monkeypatch, capsys):
    monkeypatch.setenv("RWKV_ENGINE_KERNELS", "reference")
    assert decide() == cpu_kernels.Status("reference", None, None, "RWKV_ENGINE_KERNELS=reference")
    assert capsys.readouterr().err == ""


def test_a_level_of_the_cpu_does_not_concern_the_gpu(machine, monkeypatch):
    monkeypatch.setenv("RWKV_ENGINE_KERNELS", "portable")
    monkeypatch.setattr(toolkit, "missing_programs", lambda: ("ninja",))
    assert decide().reason.startswith("not on PATH: ninja")


def test_the_decision_is_made_once(monkeypatch, capsys):
    monkeypatch.setattr(toolkit, "machine", lambda: (_ for _ in ()).throw(RuntimeError("no machine")))
    cuda_kernels.status.cache_clear()
    try:
        assert [cuda_kernels.status().reason for _ in range(3)] == ["no machine"] * 3
    finally:
        cuda_kernels.status.cache_clear()
    assert capsys.readouterr().err.count("no machine") == 1


@pytest.fixture
def prebuilt(tmp_path, monkeypatch):
    """A folder of prebuilt libraries, and what was opened of it."""
    opened = []
    monkeypatch.setattr(cpu_kernels, "PREBUILT", tmp_path)
    monkeypatch.setattr(cuda_kernels, "open_library", opened.append)
    return tmp_path, opened


def test_a_prebuilt_library_serves_the_gpus_it_covers(prebuilt, capsys):
    folder, opened = prebuilt
    path = folder / f"{build.cuda_library_name([80, 90])}.so"
    path.touch()
    (folder / f"{build.library_name('portable')}.so").touch()
    for gpus in ((80, 86), (90, 120)):
        status = cuda_kernels._prebuilt(gpus)
        assert (status.kind, status.level, status.path) == ("prebuilt", "sm_80, sm_90", path)
    assert opened == [path, path]
    assert cuda_kernels._prebuilt((75, 90)) is None
    assert cuda_kernels._prebuilt(()) is None
    assert len(opened) == 2
    assert capsys.readouterr().err == ""


def test_a_stale_prebuilt_library_is_never_opened(prebuilt, capsys):
    folder, opened = prebuilt
    (folder / "kernels_cuda_90_0123456789abcdef.so").touch()
    assert cuda_kernels._prebuilt((90,)) is None
    assert opened == []
    assert "other sources or another torch; not opened" in capsys.readouterr().err


def test_a_prebuilt_library_that_cannot_be_opened_is_passed_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu_kernels, "PREBUILT", tmp_path)
    (tmp_path / f"{build.cuda_library_name([90])}.so").write_bytes(b"damaged")
    assert cuda_kernels._prebuilt((90,)) is None
    assert "building another" in capsys.readouterr().err


@pytest.mark.slow
def test_importing_decides_nothing(run_python, tmp_path):
    code = (
        "from rwkv_engine import RWKV\n"
        "from rwkv_engine.native import cuda_kernels\n"
        "RWKV.from_pretrained('tales')\n"
        "assert cuda_kernels.status.cache_info().currsize == 0, 'a model on the CPU needs no GPU'\n"
    )
    result = run_python(code, RWKV_ENGINE_KERNELS="reference")
    assert (result.returncode, result.stderr) == (0, "")
