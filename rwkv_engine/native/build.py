"""The sources, compiler flags and hashes of the CPU library and the CUDA library.

`setup.py` (ahead of time), `cpu_kernels` and `cuda_kernels` (just in time), CMake (C++ tests) and `tools/check_cuda.py`
all use this module, so that they cannot disagree. At the top it imports only the standard library, because `setup.py`
also runs where torch is not installed.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent

# Instruction set levels are build variants of the same sources, best first. A processor runs its own level and all that
# follow it.
LEVELS: dict[str, tuple[str, ...]] = (
    {
        "x86-64-v4-bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mprefer-vector-width=512"),
        "x86-64-v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
        "x86-64-v3": ("-march=x86-64-v3",),
        "portable": (),
    }
    if platform.machine().lower() in ("x86_64", "amd64")
    else {"portable": ()}
)

# The language standard is explicit because some releases of torch (such as 2.11) otherwise choose C++17.
STANDARD = "-std=c++20"

# These are not fast-math: -fno-math-errno and -fno-trapping-math only give up errno and floating-point traps, which
# nothing here uses, so that loops can be vectorised. Without -fopenmp torch's parallel_for header silently runs on one
# thread. -Wno-psabi is safe because functions that are not inlined never pass vectors wider than a level's registers.
COMPILE_FLAGS = (
    STANDARD,
    "-O3",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
)

# The architectures for which a library is built by default: Turing, Ampere, Hopper. GPUs of a newer minor version run
# the code of an older one, and later generations the PTX of the newest.
ARCHITECTURES = (75, 80, 90)
# There is no --use_fast_math, and -fmad=false fuses multiplications and additions only where the source says so (fmaf):
# otherwise a row's bits could depend on whether the kernel for 1, 2, 4, 8 or 16 rows computes it. A launch on the
# default stream is an error, because kernels must run on torch's current stream.
NVCC_FLAGS = (
    STANDARD,
    "-O3",
    "-fmad=false",
    "--Werror=default-stream-launch,cross-execution-space-call",
    "-Xcompiler=-Wall",
)
CUDA_BINDING_FLAGS = (STANDARD, "-O3", "-Wall", "-Wextra")


def source_root() -> Path:
    """The `csrc` folder: inside an installed package, next to it in a checkout or an editable install."""
    for candidate in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no csrc folder in {PACKAGE} nor in {PACKAGE.parent}: the installation is incomplete")


def has_python_headers() -> bool:
    """Whether `Python.h` is installed; some systems have it in a separate package."""
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def sources() -> list[Path]:
    """Translation units of the CPU library. Only the bindings with pybind11 need `Python.h`."""
    root = source_root()
    modules = root.glob("bindings/*_pybind.cpp") if has_python_headers() else ()
    return sorted([*root.glob("kernels/cpu/*.cpp"), *root.glob("bindings/cpu.cpp"), *modules])


def cuda_sources() -> list[Path]:
    """Translation units of the CUDA library: kernels without torch, for nvcc, and bindings, for the C++ compiler."""
    root = source_root()
    return sorted([*root.glob("kernels/cuda/*.cu"), *root.glob("bindings/cuda.cpp")])


def compile_flags(level: str) -> list[str]:
    """Compiler flags for one instruction set level, a key of `LEVELS`, without the include path `source_root()`."""
    return [*COMPILE_FLAGS, *LEVELS[level]]


def nvcc_flags(architectures: Sequence[int]) -> list[str]:
    """nvcc's flags for machine code of these architectures (90 is sm_90) and PTX of the newest."""
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    newest = max(architectures)
    return [*NVCC_FLAGS, *code, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def schemas() -> list[str]:
    """The operator schemas of `ops/`: module constants named `*SCHEMA`, read without importing the modules."""
    found = []
    for path in sorted((PACKAGE / "ops").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").endswith("SCHEMA"):
                found.append(ast.literal_eval(node.value))
    return found


def library_key(flags: Sequence[str]) -> str:
    """A hash of everything that must agree between a compiled library and this package; another key means stale.

    A C++ signature that disagrees with a Python schema aborts the process when the library is loaded, so the key is
    part of the file name and is compared before loading. It does not cover the compilers and `Python.h`, because a
    machine without them must still recognise a prebuilt library; the just-in-time cache adds them.
    """
    import torch

    digest = hashlib.sha256()
    root = source_root()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".h", ".cpp", ".cuh", ".cu")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    parts = [*schemas(), *flags, torch.__version__, str(torch.version.cuda)]
    parts += [sys.implementation.cache_tag, str(sysconfig.get_platform())]
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:16]


def library_name(level: str) -> str:
    """File name, without extension, of the compiled CPU library for one level."""
    return f"kernels_{level.replace('-', '_')}_{library_key([level, *compile_flags(level)])}"


def cuda_library_name(architectures: Sequence[int]) -> str:
    """File name, without extension, of the compiled CUDA library: `kernels_cuda_80_90_KEY`."""
    key = library_key([*nvcc_flags(architectures), *CUDA_BINDING_FLAGS])
    return f"kernels_cuda_{'_'.join(map(str, architectures))}_{key}"


if __name__ == "__main__":  # for CMake, which needs the flags of a level: python build.py x86-64-v3
    print(";".join(compile_flags(sys.argv[1])))
