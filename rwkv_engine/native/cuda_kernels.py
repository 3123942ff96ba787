"""Finds the compiled CUDA kernels, as `cpu_kernels` does those of the CPU. Loading a model on a GPU triggers it.

`RWKV_ENGINE_KERNELS=reference` disables them too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rwkv_engine.errors import ExtensionError
from rwkv_engine.native import build, cache, cpu_kernels, toolkit
from rwkv_engine.native.cpu_kernels import VARIABLE, Status
from rwkv_engine.native.jit import build_once, open_earlier, open_library
from rwkv_engine.native.toolkit import Machine
from rwkv_engine.notices import log


@functools.cache
def status() -> Status:
    """The implementation of the operators on GPUs; decided on the first call."""
    if os.environ.get(VARIABLE) == "reference":
        return Status("reference", None, None, f"{VARIABLE}=reference")
    try:
        machine = toolkit.machine()
        return _prebuilt(machine.gpus) or _just_in_time(machine)
    except (ExtensionError, OSError, RuntimeError) as error:
        log.warning(f"running without compiled kernels on the GPU, slower but correct: {error}")
        return Status("reference", None, None, str(error))


def _prebuilt(gpus: Sequence[int]) -> Status | None:
    for path in sorted(cpu_kernels.PREBUILT.glob("kernels_cuda_*.so")):
        built_for = [int(word) for word in path.stem.split("_")[2:-1]]
        if path.stem != build.cuda_library_name(built_for):
            log.warning(f"{path.name} is for other sources or another torch; not opened")
        elif gpus and all(toolkit.covers(built_for, gpu) for gpu in gpus):
            try:
                open_library(path)
            except ExtensionError as error:
                log.warning(f"{error}; building another")
                return None
            return Status("prebuilt", _names(built_for), path, "built when the package was installed")
    return None


def _just_in_time(machine: Machine) -> Status:
    problem = toolkit.why_not(machine)
    if problem:
        return _built_earlier(machine.gpus, problem)
    nvcc = machine.nvcc
    assert nvcc is not None  # why_not asks for it
    architectures, _ = toolkit.chosen_architectures(nvcc, machine.gpus)
    compilers = hashlib.sha256(f"{nvcc.version} {_host_compilers()}".encode()).hexdigest()[:8]
    with _torch_builds_with(nvcc.root):
        path, reason = build_once(
            f"{build.cuda_library_name(architectures)}_{compilers}",
            f"the CUDA kernels for {_names(architectures)}, once, about a minute",
            f"nvcc {nvcc.version}",
            toolkit.advice,
            sources=[str(source) for source in build.cuda_sources()],
            extra_cflags=list(build.CUDA_BINDING_FLAGS),
            extra_cuda_cflags=build.nvcc_flags(architectures),
        )
    return Status("jit", _names(architectures), path, reason)


def _built_earlier(gpus: Sequence[int], problem: str) -> Status:
    """The status with a cached library that runs on these GPUs, for use if none can be built now.

    Raises:
        ExtensionError: there is none; the message is `problem`.
    """
    for path in cache.kept("kernels_cuda_*.so"):
        found = re.fullmatch(r"kernels_cuda_((?:\d+_)+)[0-9a-f]{16}_[0-9a-f]{8}", path.stem)
        built_for = [int(word) for word in found[1].split("_")[:-1]] if found else []
        runs = bool(gpus and built_for) and all(toolkit.covers(built_for, gpu) for gpu in gpus)
        if runs and path.stem.startswith(f"{build.cuda_library_name(built_for)}_"):
            library = open_earlier(path.stem, problem)
            return Status("jit", _names(built_for), library, f"built here earlier; {problem}")
    raise ExtensionError(problem)


def _names(architectures: Sequence[int]) -> str:
    return ", ".join(f"sm_{a}" for a in architectures)


def _host_compilers() -> str:
    commands = [toolkit.cxx_command(), [os.environ.get("CC") or "g++"]]
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    return " ".join(run([*command, "--version"]).stdout.partition("\n")[0] for command in commands)


@contextmanager
def _torch_builds_with(toolkit: Path) -> Iterator[None]:
    """Makes torch build with this toolkit.

    torch searches for the toolkit once, at import. If nvcc is a link or a script, it takes the wrong folder.
    """
    from torch.utils import cpp_extension

    before = cpp_extension.CUDA_HOME
    cpp_extension.CUDA_HOME = str(toolkit)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = before
