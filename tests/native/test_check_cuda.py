"""The check of the CUDA sources fails when it should, with a fake nvcc; and compiles what the engine compiles."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from fake_nvcc import fake_nvcc
from test_build import needs_compiler
from test_cuda_kernels import decide, machine  # noqa: F401

from rwkv_engine.native import build, toolkit

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4rwkv4cuda13linear_kernelIfLi4EEEvPf' for 'sm_75'
ptxas info    : Function properties for _ZN4rwkv4cuda13linear_kernelIfLi4EEEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 360 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN4rwkv4cuda13linear_kernelIdLi4EEEvPf' for 'sm_75'
ptxas info    : Function properties for helper
    8 bytes stack frame, {stores} bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _ZN4rwkv4cuda13linear_kernelIdLi4EEEvPf
    0 bytes stack frame, 0 bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


@pytest.fixture
def check_cuda():
    spec = importlib.util.spec_from_file_location("check_cuda", ROOT / "tools" / "check_cuda.py")
    loaded = sys.modules["check_cuda"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_report_of_ptxas_is_read(check_cuda):
    report = check_cuda.uses(REPORT.format(stores=4, loads=12))
    assert [(use.architecture, use.registers, use.spills) for use in report] == [("sm_75", 96, 0), ("sm_75", 255, 16)]
    names = check_cuda.demangled({use.kernel for use in report})
    rows = [check_cuda.Use(names[u.kernel], u.architecture, u.registers, u.spills) for u in report]
    [_, line] = check_cuda.table(rows)
    assert line.split()[-2:] == ["255", "16"]


@pytest.mark.parametrize(
    ("file", "spilled", "expected"),
    [
        ("linear.cu", (0, 0), []),
        ("linear.cu", (4, 12), ["linear.cu: ", " spills 16 bytes on sm_75"]),
        ("time_mixing4_step.cu", (0, 8), ["time_mixing4_step.cu: ", " spills 8 bytes on sm_75"]),
        ("wkv4.cu", (4, 12), []),
    ],
)
def test_spills_in_kernels_of_decoding_are_errors(file, spilled, expected, check_cuda, tmp_path, capsys):
    report = REPORT.format(stores=spilled[0], loads=spilled[1])
    path = fake_nvcc(tmp_path, compiling=f"cat <<'END'\n{report}END\n")
    wrong = check_cuda.check(toolkit._describe(path), [Path(file)], 1)
    assert len(wrong) == bool(expected)
    assert all(part in wrong[0] for part in expected)
    assert "255" in capsys.readouterr().out


@needs_compiler
def test_what_does_not_compile_is_shown(check_cuda, tmp_path, capsys):
    path = fake_nvcc(tmp_path, compiling="echo 'x.cu(1): error: no' >&2; exit 2")
    binding = tmp_path / "warned_cuda.cpp"
    binding.write_text("bool mixed_signs(unsigned a, int b) { return a < b; }\n")
    wrong = check_cuda.check(toolkit._describe(path), [Path("wkv4.cu"), binding], 2)
    assert len(wrong) == 2
    assert "x.cu(1): error: no" in wrong[0]
    assert "mixed_signs" in wrong[1], "warnings are errors"


def test_later_generations_are_compiled_too_where_nvcc_knows_them(check_cuda, tmp_path):
    path = fake_nvcc(tmp_path, architectures="75 80 90 100 110 120", compiling=f'echo "$@" > {tmp_path}/arguments')
    assert check_cuda.check(toolkit._describe(path), [Path("linear.cu")], 1) == []
    arguments = (tmp_path / "arguments").read_text()
    assert [a for a in (75, 80, 90, 100, 110, 120) if f"code=sm_{a} " in arguments] == [75, 80, 90, 100, 120]


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--require"], 1)])
def test_without_nvcc_it_says_so(arguments, code, check_cuda, monkeypatch, capsys):
    monkeypatch.setattr(toolkit, "find_nvcc", lambda: None)
    monkeypatch.setattr(sys, "argv", ["check_cuda", *arguments])
    assert check_cuda.main() == code
    assert "not compiled here: no nvcc" in capsys.readouterr().out


@needs_compiler
def test_flags_are_those_of_the_just_in_time_build(check_cuda, machine, monkeypatch):  # noqa: F811
    """Both compilers note what they are asked for."""
    compiler = machine / "c++"
    compiler.write_text(
        f'#!/bin/sh\ncase " $* " in *" -c "*) printf "%s\\n" "$@" >{machine}/binding ;; esac\nexec c++ "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert decide().kind == "jit"
    binding, kernel = build.cuda_sources()
    nvcc = toolkit.find_nvcc()

    def flags(arguments):
        """Without what names this one build: files and its module."""
        plain = [a for a in arguments if not a.startswith("-DTORCH_EXTENSION_NAME")]
        return sorted(  # torch may name the standard too
            a
            for a in set(plain)
            if a not in ("-MD", "-MF", "-MMD", "-c", "-o") and not a.endswith((".o", ".d", ".cu", ".cpp"))
        )

    noted = [(machine / path).read_text().splitlines() for path in ("bin/arguments", "binding")]
    assert flags(noted[0]) == flags(check_cuda.kernel_command(nvcc, kernel, (90,), Path("x.o"))[1:])
    assert flags(noted[1]) == flags(check_cuda.binding_command(nvcc, binding, Path("x.o"))[1:])


@pytest.mark.slow
@pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")
def test_a_kernel_with_a_mistake_is_found_by_the_real_nvcc(check_cuda, tmp_path):
    nvcc = toolkit.find_nvcc()
    source = tmp_path / "linear.cu"
    source.write_text("__global__ void f_kernel(float* x) { *x = 1; }\nvoid f(float* x) { f_kernel<<<1, 1>>>(x); }\n")
    [wrong] = check_cuda.check(nvcc, [source], 1)
    assert "stream argument" in wrong
    source.write_text(
        source.read_text()
        .replace("<<<1, 1>>>", "<<<1, 1, 0, stream>>>")
        .replace("x) { f_", "x, cudaStream_t stream) { f_")
    )
    assert check_cuda.check(nvcc, [source], 1) == []
