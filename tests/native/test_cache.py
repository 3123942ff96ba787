"""Where just-in-time builds are kept, found again, remembered when they fail, and cleaned up after being killed."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_build import needs_compiler
from torch.utils import cpp_extension

from rwkv_engine.errors import ExtensionError
from rwkv_engine.native import build, cache, cpu_kernels, cuda_kernels, jit, toolkit


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    # Within one process torch neither repeats a build nor keeps a library's name for other sources. Tests do both.
    first = SimpleNamespace(get_version=lambda name: None, bump_version_if_changed=lambda *_, **__: 0)
    monkeypatch.setattr(cpp_extension, "JIT_EXTENSION_VERSIONER", first)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "rwkv_engine").mkdir()
    return tmp_path / "rwkv_engine"


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """What was opened, instead of opening it; files that hold `damaged` cannot be."""
    paths = []

    def open_library(path: Path) -> None:
        if path.read_bytes() == b"damaged":
            raise ExtensionError(f"cannot open {path}")
        paths.append(path)

    monkeypatch.setattr(jit, "open_library", open_library)
    return paths


def library(path: Path, age: int, content: bytes = b"") -> Path:
    path.write_bytes(content)
    os.utime(path, (1_000_000 - age,) * 2)
    return path


def test_without_a_compiler_the_newest_library_built_earlier_serves(folder, opened, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    name = build.library_name("portable")
    with pytest.raises(ExtensionError, match="no 'no-such-compiler' on PATH"):
        cpu_kernels._just_in_time("portable")
    library(folder / "kernels_portable_0123456789abcdef_cccccccc.so", 0)  # of other sources
    old = library(folder / f"{name}_bbbbbbbb.so", 20)
    assert cpu_kernels._just_in_time("portable").path == old
    new = library(folder / f"{name}_aaaaaaaa.so", 10)
    library(folder / f"{name}_dddddddd.so", 5, b"damaged")
    status = cpu_kernels._just_in_time("portable")
    assert (status.kind, status.level, status.path) == ("jit", "portable", new)
    assert "built here earlier; no 'no-such-compiler' on PATH" in status.reason
    assert opened == [old, new]


def test_without_nvcc_a_library_for_these_gpus_serves(folder, opened):
    machine = toolkit.Machine("2.11.0+cu130", "13.0", (86, 90), "", None, ())
    library(folder / f"{build.cuda_library_name([90])}_aaaaaaaa.so", 0)
    with pytest.raises(ExtensionError, match="no nvcc in CUDA_HOME"):
        cuda_kernels._just_in_time(machine)
    right = library(folder / f"{build.cuda_library_name([80, 90])}_aaaaaaaa.so", 10)
    status = cuda_kernels._just_in_time(machine)
    assert (status.level, status.path, opened) == ("sm_80, sm_90", right, [right])


@needs_compiler
@pytest.mark.parametrize("compiler", ["", " ", "g++ ", "env g++", "env 'g++'"])
def test_compilers_of_no_word_and_of_several(compiler, folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CXX", compiler)
    source = tmp_path / "nothing.cpp"
    source.write_text("int nothing;\n")
    assert cpu_kernels._compiler().version
    path, _ = jit.build_once("nothing", "nothing", "this compiler", sources=[str(source)])
    assert path == folder / "nothing.so"
    assert os.environ["CXX"] == compiler
    assert [p.name for p in folder.glob("build_*")] == []
    assert len(capfd.readouterr().err.splitlines()) <= 1, "torch complains about compilers of several words"


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("'g++", r"no \"'g\+\+\" on PATH; install g\+\+"),
        ("env no-such", r"'env no-such' does not answer --version; set CXX to a C\+\+ compiler"),
    ],
)
def test_a_program_that_is_not_a_compiler_is_named(compiler, message, folder, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(ExtensionError, match=message):
        cpu_kernels._compiler()


def failing(folder: Path, message: str, monkeypatch) -> Path:
    """A compiler that fails with a message; returns the file that counts its attempts."""
    compiler, count = folder / "g++", folder / "count"
    compiler.write_text(
        f'#!/bin/sh\ncase "$1" in --version|-v|-dumpfullversion) echo g++ 13 ;;\n'
        f"*) echo x >>{count}; echo '{message}' >&2; exit 1 ;; esac\n"
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    return count


def attempt(tmp_path: Path) -> str:
    source = tmp_path / "nothing.cpp"
    source.write_text("int nothing;\n")
    with pytest.raises(ExtensionError) as failed:
        jit.build_once("nothing", "nothing", "g++ 13", sources=[str(source)])
    assert "\n" not in str(failed.value)
    return str(failed.value)


def test_a_build_that_the_compiler_rejects_is_not_repeated_by_every_process(folder, tmp_path, monkeypatch):
    count = failing(tmp_path, "x.cpp:1: error: no luck", monkeypatch)
    full = folder / "nothing.log"
    assert f"no luck (all in {full}; delete it to try again)" in attempt(tmp_path)
    assert f"no luck (delete {full} to try again)" in attempt(tmp_path)
    assert count.read_text() == "x\n"
    full.unlink()
    attempt(tmp_path)
    assert count.read_text() == "x\nx\n"


def test_a_rejected_build_that_mentions_a_header_named_memory_is_remembered(folder, tmp_path, monkeypatch):
    count = failing(tmp_path, "x.cpp:1: error: std::unique_ptr is defined in <memory>", monkeypatch)
    for _ in range(2):
        attempt(tmp_path)
    assert count.read_text() == "x\n"


def test_a_program_that_is_not_a_compiler_is_quoted_without_its_command(folder, tmp_path, monkeypatch):
    failing(tmp_path, "cat: invalid option -- M", monkeypatch)
    assert f"could not build the kernels: cat: invalid option -- M (all in {folder / 'nothing.log'}" in attempt(
        tmp_path
    )


@pytest.mark.parametrize(
    "message", ["fatal error: Killed signal terminated", "fatal error: No space left on device", "error: out of memory"]
)
def test_a_temporary_failure_is_not_remembered_and_comes_with_advice(folder, tmp_path, message, monkeypatch):
    count = failing(tmp_path, message, monkeypatch)
    for _ in range(2):
        assert f"{message}; set XDG_CACHE_HOME to a folder" in attempt(tmp_path)
    assert count.read_text() == "x\nx\n"


def test_folders_of_killed_builds_are_removed_and_those_at_work_are_not(folder):
    for name in ("killed", "working", "recent", "ancient"):
        (folder / f"build_{name}").mkdir()
        (folder / f"build_{name}" / "half.o").touch()
    (folder / "killed.lock").touch()
    os.utime(folder / "build_ancient", (0, 0))
    with open(folder / "working.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache.remove_abandoned_builds(folder)
    assert sorted(p.name for p in folder.glob("build_*")) == ["build_recent", "build_working"]


def test_where_the_cache_cannot_be_written_a_private_folder_serves(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/proc/nothing")
    instead = cache.writable_folder()
    assert instead.parent == tmp_path / "temporary"
    assert stat.S_IMODE(instead.stat().st_mode) == 0o700
    [record] = caplog.records
    assert "cannot write to /proc/nothing/.cache/rwkv_engine (No such file or directory)" in record.message
    assert "set XDG_CACHE_HOME to a folder that can be written" in record.message
    (instead / "x.so").touch()
    assert cache.kept("*.so") == [instead / "x.so"]

    instead.chmod(0o777)
    assert cache.kept("*.so") == [], "anybody could have put it there"
    with pytest.raises(ExtensionError, match=r"cannot write to /proc/nothing/\S+ \(.*\) nor to .*; set XDG_CACHE_HOME"):
        cache.writable_folder()


def test_without_any_home_a_temporary_folder_is_the_cache(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache.cache_folder().parent == tmp_path / "temporary"
