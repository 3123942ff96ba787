"""How the compiled kernels come to be, or do not."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT

from rwkv_engine.errors import ExtensionError
from rwkv_engine.native import build, cpu_kernels, jit

CALL = (
    "import torch\n"
    "from rwkv_engine.native import cpu_kernels\n"
    "from rwkv_engine.ops import wkv4\n"
    "z = torch.zeros(2, 8)\n"
    "for _ in range(3): wkv4(-torch.ones(8), torch.ones(8), torch.ones(2, 3, 8), torch.ones(2, 3, 8), z, z, z - 1e30)\n"
    "print(cpu_kernels.status().kind, cpu_kernels.status().level)\n"
)
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")


@pytest.mark.slow
def test_importing_compiles_and_loads_nothing(run_python, tmp_path):
    code = (
        "import rwkv_engine, sys, pathlib\n"
        "from rwkv_engine.native import cpu_kernels\n"
        "assert cpu_kernels.status.cache_info().currsize == 0\n"
        "assert 'kernels_' not in pathlib.Path('/proc/self/maps').read_text()\n"
        "assert 'torch.utils.cpp_extension' not in sys.modules\n"
    )
    result = run_python(code, XDG_CACHE_HOME=str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_a_compiler_the_reference_runs_and_says_so_once(run_python, tmp_path):
    result = run_python(CALL, CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert result.stdout == "reference None\n", result.stderr
    [line] = result.stderr.splitlines()
    assert "slower but correct" in line
    assert "no-such-compiler" in line


@pytest.mark.slow
def test_a_compiler_that_fails_is_quoted(run_python, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo broken 1.0 && exit\necho 'x.cpp:1: error: no luck' >&2; exit 1\n"
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    result = run_python(CALL, CXX=str(compiler), XDG_CACHE_HOME=str(tmp_path))
    assert result.stdout == "reference None\n", result.stderr
    # torch may add a warning of its own about a compiler it does not know
    compiling, failed = [line for line in result.stderr.splitlines() if line.startswith(("compiling", "running"))]
    assert "compiling" in compiling
    assert "broken 1.0" in failed
    assert "no luck" in failed
    assert not list((tmp_path / "rwkv_engine").glob("*.so"))


@pytest.mark.slow
@needs_compiler
def test_first_use_builds_once_with_one_line_and_later_ones_use_the_cache(few_sources, tmp_path, monkeypatch):
    """Two processes at once, and what a killed build leaves behind: its half-filled folder with torch's own lock."""
    folder = tmp_path / "rwkv_engine"
    (folder / "build_killed").mkdir(parents=True)
    (folder / "build_killed" / "lock").touch()
    choice = {"XDG_CACHE_HOME": str(tmp_path), "RWKV_ENGINE_KERNELS": "portable"}
    environment = os.environ | {"PYTHONPATH": str(few_sources)} | choice

    def start():
        command = [sys.executable, "-c", CALL]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=few_sources, env=environment, stdout=pipe, stderr=pipe, text=True)

    both = [start(), start()]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [out for out, _ in outputs] == ["jit portable\n"] * 2, outputs
    [line] = "".join(errors for _, errors in outputs).splitlines()
    assert "compiling the portable kernels" in line
    assert start().communicate(timeout=300) == ("jit portable\n", "")
    monkeypatch.setattr(build, "PACKAGE", few_sources / "rwkv_engine")
    [library] = folder.glob("*.so")
    assert library.name.startswith(build.library_name("portable"))
    # Without -fopenmp torch's parallel_for compiles to a loop on one thread, silently. (g++'s call, or clang's)
    assert re.search(rb"GOMP_parallel|__kmpc_fork_call", library.read_bytes())


@pytest.mark.slow
def test_an_unknown_choice_is_refused(run_python):
    result = run_python(CALL, RWKV_ENGINE_KERNELS="avx9")
    assert "ExtensionError: RWKV_ENGINE_KERNELS: got 'avx9', expected one of reference" in result.stderr


@pytest.mark.slow
def test_a_forced_level_that_cannot_be_built_is_an_error(run_python, tmp_path):
    result = run_python(CALL, RWKV_ENGINE_KERNELS="portable", CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert "ExtensionError: no 'no-such-compiler' on PATH" in result.stderr


def test_the_key_changes_with_what_must_agree(tmp_path, monkeypatch):
    package = tmp_path / "rwkv_engine"
    shutil.copytree(ROOT / "rwkv_engine" / "ops", package / "ops")
    shutil.copytree(build.source_root(), package / "csrc")
    monkeypatch.setattr(build, "PACKAGE", package)

    def names():
        return build.library_name("portable"), build.cuda_library_name([80, 90])

    keys = [names()]

    def remember():
        keys.append(names())

    with open(package / "csrc" / "kernels" / "math.h", "a") as file:
        file.write("// changed\n")
    remember()
    op = package / "ops" / "wkv4.py"
    op.write_text(op.read_text().replace("Tensor decay", "Tensor w", 1))
    remember()
    op.write_text(op.read_text() + "\n# a comment is no schema\n")
    assert names() == keys[-1]
    monkeypatch.setattr("torch.__version__", "9.9")
    remember()
    monkeypatch.setattr("torch.version.cuda", "9.9")
    remember()
    assert all(len({*column}) == len(keys) for column in zip(*keys, strict=True))
    cpu, cuda = names()
    monkeypatch.setattr(build, "COMPILE_FLAGS", (*build.COMPILE_FLAGS, "-O1"))
    assert build.library_name("portable") != cpu
    monkeypatch.setattr(build, "NVCC_FLAGS", (*build.NVCC_FLAGS, "-O1"))
    assert names()[1] != cuda
    assert build.cuda_library_name([80]) != names()[1]


def test_a_stale_prebuilt_library_is_never_opened(tmp_path, monkeypatch, capsys):
    (tmp_path / "kernels_portable_0000.so").write_bytes(b"opening this would fail")
    monkeypatch.setattr(cpu_kernels, "PREBUILT", tmp_path)
    assert cpu_kernels._prebuilt("") is None
    assert "other sources or another torch" in capsys.readouterr().err


def test_a_prebuilt_library_that_cannot_be_opened_is_passed_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu_kernels, "PREBUILT", tmp_path)
    (tmp_path / f"{build.library_name(cpu_kernels.processor_level())}.so").write_bytes(b"damaged")
    assert cpu_kernels._prebuilt("") is None
    assert "building another" in capsys.readouterr().err


def test_a_damaged_library_says_what_to_do(tmp_path):
    path = tmp_path / "x.so"
    path.write_bytes(b"no library")
    with pytest.raises(ExtensionError, match=r"file too short.*; delete it|invalid ELF header.*; delete it"):
        jit.open_library(path)


@pytest.mark.slow
def test_one_openmp_runtime_and_it_is_named(run_python):
    """In a process of its own: packages that other tests import, such as scikit-learn, bring another runtime."""
    code = (
        "from rwkv_engine.native import cpu_kernels\ncpu_kernels.status()\nprint(len(cpu_kernels.openmp_runtimes()))\n"
    )
    result = run_python(code)
    assert result.stdout == "1\n", result.stderr


def test_sources_are_found_next_to_the_package_and_inside_it():
    assert build.source_root().name == "csrc"
    cpu, cuda = build.sources(), build.cuda_sources()
    assert {p.parent.name for p in cpu} == {"cpu", "bindings"}
    everything = {p for p in build.source_root().rglob("*") if p.suffix in (".cpp", ".cu")}
    assert {*cpu, *cuda} == everything
    assert not {*cpu} & {*cuda}
    for library in (cpu, cuda):
        assert len({p.name for p in library}) == len(library), "object files are named by their source"
    assert os.path.isfile(build.source_root() / "kernels" / "wkv4_step.h")


def test_without_pythons_headers_only_the_python_modules_are_missing(tmp_path, monkeypatch):
    everything = {path.name for path in build.sources()}
    tag = cpu_kernels._compiler().tag if shutil.which("c++") else None
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert everything - {path.name for path in build.sources()} == {"byte_trie_pybind.cpp"}
    assert tag is None or cpu_kernels._compiler().tag != tag, "a library without modules would be found for ever"


@needs_compiler
def test_a_library_without_a_requested_module_says_what_to_do(capsys):
    assert cpu_kernels.python_module("no_such_module") is None
    assert "without the compiled no_such_module" in capsys.readouterr().err
