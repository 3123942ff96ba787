"""Finds the CPU's compiled kernels: a prebuilt library, otherwise one built just in time, otherwise torch references.

The first operator call decides, once per process; importing does nothing. `status()` returns the decision and its
reason. From then on, processes forked from this one run kernels and torch on one thread. `RWKV_ENGINE_KERNELS` forces
the choice: `reference` uses no compiled code, and an instruction set level (`portable`, `x86-64-v3`, ...) builds and
loads that level, or fails.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import ModuleType

import torch

from rwkv_engine.errors import ExtensionError
from rwkv_engine.native import build, ways
from rwkv_engine.native.jit import build_once, open_earlier, open_library, search_path
from rwkv_engine.native.toolkit import cxx_command
from rwkv_engine.notices import log

PREBUILT = build.PACKAGE / "_prebuilt"
VARIABLE = "RWKV_ENGINE_KERNELS"


@dataclass(frozen=True)
class Status:
    """Which implementation of the operators is in use on one type of device.

    Attributes:
        kind: "prebuilt", "jit" or "reference".
        level: the library's instruction set level, or its GPU architectures; None without a library.
        path: the library; None without one.
        reason: how the library came to be, or why there is none.
    """

    kind: str
    level: str | None
    path: Path | None
    reason: str


def ensure_loaded() -> None:
    """Loads the kernels on the first call; later calls only look up the cached result."""
    status()


@functools.cache
def status() -> Status:
    """The implementation of the operators on the CPU; decided on the first call.

    Raises:
        ExtensionError: `RWKV_ENGINE_KERNELS` is invalid, or names a level that cannot be built or loaded; or
            a choice of `native.ways` is invalid.
    """
    if hasattr(os, "register_at_fork"):
        # A forked process has none of its parent's threads, and OpenMP's first parallel loop would wait for them.
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "reference":
        return Status("reference", None, None, f"{VARIABLE}=reference")
    if wanted and wanted not in build.LEVELS:
        options = ", ".join(["reference", *build.LEVELS])
        raise ExtensionError(f"{VARIABLE}: got {wanted!r}, expected one of {options}")
    ways.bfloat16_way(None), ways.int8_way(None)  # an invalid choice is an error before anything is compiled
    try:
        found = _prebuilt(wanted) or _just_in_time(wanted or processor_level())
    except (ExtensionError, OSError, ImportError, RuntimeError) as error:
        if wanted:
            raise
        log.warning(f"running without compiled kernels, slower but correct: {error}")
        return Status("reference", None, None, str(error))
    assert found.path is not None
    ways.choose(found.path, found.level)  # a way that there is not is an error, too
    return found


@functools.cache
def python_module(name: str) -> ModuleType | None:
    """The pybind11 module `name` inside the library; None without a library, or if it was built without pybind11."""
    path = status().path
    if path is None:
        return None
    loader = ExtensionFileLoader(f"{__package__}.{name}", str(path))
    try:
        module = importlib.util.module_from_spec(ModuleSpec(loader.name, loader, origin=str(path)))
        loader.exec_module(module)
    except ImportError as error:
        log.warning(
            f"running without the compiled {name}, slower but correct: {error}; install Python's headers (Python.h)"
        )
        return None
    return module


def processor_level() -> str:
    """The best instruction set level that this processor can run, as torch detects it."""
    best = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}.get(torch.backends.cpu.get_cpu_capability(), "portable")
    if best == "x86-64-v4" and {"avx512_bf16", "avx512_vnni"} <= ways.processor_flags():
        best = "x86-64-v4-bf16"
    return best if best in build.LEVELS else "portable"


def _prebuilt(wanted: str) -> Status | None:
    if not any(PREBUILT.glob("*.so")):
        return None
    levels = list(build.LEVELS)
    for level in [wanted] if wanted else levels[levels.index(processor_level()) :]:
        path = PREBUILT / f"{build.library_name(level)}.so"
        if path.exists():
            try:
                open_library(path)
            except ExtensionError as error:
                log.warning(f"{error}; building another")
                return None
            return Status("prebuilt", level, path, "built when the package was installed")
    log.warning(f"the prebuilt kernels are for other sources or another torch than {torch.__version__}; not opened")
    return None


def _just_in_time(level: str) -> Status:
    try:
        compiler = _compiler()
    except ExtensionError as error:
        # The file name contains the compiler, so that another compiler builds again. Without one, any library is used.
        library = open_earlier(f"{build.library_name(level)}_*", str(error))
        return Status("jit", level, library, f"built here earlier; {error}")
    path, reason = build_once(
        f"{build.library_name(level)}_{compiler.tag}",
        f"the {level} kernels for this machine, once, about 20 s",
        compiler.version,
        sources=[str(source) for source in build.sources()],
        extra_cflags=build.compile_flags(level),
        extra_ldflags=["-fopenmp"],
    )
    return Status("jit", level, path, reason)


@dataclass(frozen=True)
class _Compiler:
    version: str  # first line of --version
    tag: str  # for file names: short hash of it, and of whether there are Python's headers


def _compiler() -> _Compiler:
    command = cxx_command()
    with search_path():
        for program, package in ((command[0], "g++"), ("ninja", "ninja")):
            if not shutil.which(program):
                raise ExtensionError(f"no {program!r} on PATH; install {package} to have the kernels built")
        output = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    if not output:
        raise ExtensionError(
            f"{shlex.join(command)!r} does not answer --version; set CXX to a C++ compiler, such as g++"
        )
    version = output.splitlines()[0]
    key = f"{version} {build.has_python_headers()}"
    return _Compiler(version, hashlib.sha256(key.encode()).hexdigest()[:8])


def openmp_runtimes() -> list[str]:
    """File names of the OpenMP runtimes in this process; several of them would compete for the cores."""
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return []
    return sorted(set(re.findall(r"/(lib[gi]?omp5?[^/\s]*\.so[^/\s]*)", mapped)))
