"""The four ways to have the package: wheel, sdist -> wheel, editable install, plain checkout. Each must write text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, copy_tree

from rwkv_engine.native import build, cpu_kernels

GENERATE = ["-m", "rwkv_engine", "generate", "Once upon a time", "--max-new-tokens", "8", "--temperature", "0"]
LOCATE = ["-c", "import rwkv_engine; print(rwkv_engine.__file__)"]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("with a space") / "rwkv_engine")


@pytest.fixture
def environment(tmp_path) -> Path:
    """The Python of an empty environment that sees the packages of this one, torch above all, but not ours."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("rwkv_engine", "__editable__")):
            (borrowed / path.name).symlink_to(path)
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    return python


def pip(python: Path, *arguments: str | Path, cwd: Path) -> None:
    run(python, "-m", "pip", "--quiet", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """Built with build isolation: no torch in the build environment."""
    out = tmp_path_factory.mktemp("wheel")
    pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", out, source, cwd=out)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_is_pure_complete_and_small(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        demo = sum(i.file_size for i in archive.infolist() if i.filename.startswith("rwkv_engine/assets/tales/"))
    assert 0 < demo <= 8_000_000
    tracked = [p for folder in ("rwkv_engine", "csrc") for p in (ROOT / folder).rglob("*") if p.is_file()]
    expected = {
        ("rwkv_engine/" if p.is_relative_to(ROOT / "csrc") else "") + p.relative_to(ROOT).as_posix()
        for p in tracked
        if "__pycache__" not in p.parts and "_prebuilt" not in p.parts
    }
    assert names == expected


@pytest.mark.slow
def test_wheel(wheel, environment, tmp_path):
    pip(environment, "install", "--no-deps", wheel, cwd=tmp_path)
    assert str(tmp_path / "environment") in run(environment, *LOCATE, cwd=tmp_path)
    assert run(environment, *GENERATE, cwd=tmp_path).startswith("Once upon a time")
    command = environment.parent / "rwkv-engine"
    assert "kernels" in run(command, "info", cwd=tmp_path)


@pytest.mark.slow
def test_sdist_to_wheel(source, environment, tmp_path):
    build = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    run(sys.executable, "-c", build, cwd=source)
    [sdist] = (source / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert {Path(name).suffix for name in sources} >= {".h", ".cpp", ".cu", ".cuh"}
    assert {"LICENSE", "README.md", *sources} <= inside
    pip(environment, "install", "--no-deps", sdist, cwd=tmp_path)
    assert run(environment, *GENERATE, cwd=tmp_path).startswith("Once upon a time")


@pytest.mark.slow
def test_editable_install(source, environment, tmp_path):
    pip(environment, "install", "--no-deps", "--editable", source, cwd=tmp_path)
    assert str(source) in run(environment, *LOCATE, cwd=tmp_path)
    assert run(environment, *GENERATE, cwd=tmp_path).startswith("Once upon a time")


@pytest.mark.slow
def test_plain_checkout(source, environment):
    assert str(source) in run(environment, *LOCATE, cwd=source)
    assert run(environment, *GENERATE, cwd=source).startswith("Once upon a time")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_ahead_of_time(few_sources, environment, tmp_path, monkeypatch):
    """Without build isolation torch is there, and the wheel carries compiled kernels that are used as they are."""
    pip(environment, "install", "--no-deps", "--no-build-isolation", few_sources, cwd=tmp_path)
    monkeypatch.setattr(build, "PACKAGE", few_sources / "rwkv_engine")
    libraries = (tmp_path / "environment").glob("lib/python*/site-packages/rwkv_engine/_prebuilt/*")
    levels = {cpu_kernels.processor_level(), "portable"}
    assert {path.name for path in libraries} == {f"{build.library_name(level)}.so" for level in levels}

    cache = tmp_path / "cache"
    output = run(environment, "-m", "rwkv_engine", "info", cwd=tmp_path, XDG_CACHE_HOME=str(cache))
    assert "built when the package was installed" in output
    assert cpu_kernels.processor_level() in output
    trie = "from rwkv_engine.native import cpu_kernels; print(cpu_kernels.python_module('byte_trie').ByteTrie.__name__)"
    assert run(environment, "-c", trie, cwd=tmp_path, XDG_CACHE_HOME=str(cache)) == "ByteTrie\n"
    assert not cache.exists()
    assert run(environment, *GENERATE, cwd=tmp_path).startswith("Once upon a time")
