"""The single answer to: which sources, which flags, which hash, for the CPU's library and for CUDA's.

`setup.py` (ahead of time), `cpu_kernels` and `cuda_kernels` (just in time), CMake (C++ tests) and
`tools/check_cuda.py` all ask this module, so they cannot drift apart. Only the standard library is imported at the
top: `setup.py` reads this file where torch may be absent.
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

# Instruction levels are build variants of the same sources, best first. A processor runs its own level and all below.
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

# The language standard is named because older releases of torch (2.11 among them) choose C++17 where no flag does.
STANDARD = "-std=c++20"

# No fast-math: these two only drop errno and floating-point traps, which nothing here reads, so that loops vectorise.
# Without -fopenmp torch's parallel_for header silently runs on one thread. -Wno-psabi: vectors wider than a level's
# registers never cross a function that is not inlined.
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

# GPUs a library is built for where nobody says which: Turing, Ampere, Hopper. Newer minor versions run the code of
# older ones, later generations the PTX of the newest.
ARCHITECTURES = (75, 80, 90)
# No --use_fast_math; and multiplications and additions are fused where the source says so (fmaf) and nowhere else, or a
# row's bits could depend on which of the kernels for 1, 2, 4, 8 or 16 rows it goes through. A launch on the default
# stream is an error: kernels run on torch's current one.
NVCC_FLAGS = (
    STANDARD,
    "-O3",
    "-fmad=false",
    "--Werror=default-stream-launch,cross-execution-space-call",
    "-Xcompiler=-Wall",
)
CUDA_BINDING_FLAGS = (STANDARD, "-O3", "-Wall", "-Wextra")


def source_root() -> Path:
    """The `csrc` folder: inside an installed package, beside it in a checkout or an editable install."""
    for candidate in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no csrc folder in {PACKAGE} nor in {PACKAGE.parent}: the installation is incomplete")


def has_python_headers() -> bool:
    """Whether `Python.h` is here; some systems keep it in a package of its own."""
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def sources() -> list[Path]:
    """Translation units of the CPU library. The bindings of operators do not need `Python.h`, those of pybind11 do."""
    root = source_root()
    modules = root.glob("bindings/*_pybind.cpp") if has_python_headers() else ()
    return sorted([*root.glob("kernels/cpu/*.cpp"), *root.glob("bindings/*_cpu.cpp"), *modules])


def cuda_sources() -> list[Path]:
    """Translation units of the CUDA library: kernels, for nvcc, which see no torch; bindings, for the C++ compiler."""
    root = source_root()
    return sorted([*root.glob("kernels/cuda/*.cu"), *root.glob("bindings/*_cuda.cpp")])


def compile_flags(level: str) -> list[str]:
    """Compiler flags for one instruction level, a key of `LEVELS`; `source_root()` is on the include path besides."""
    return [*COMPILE_FLAGS, *LEVELS[level]]


def nvcc_flags(architectures: Sequence[int]) -> list[str]:
    """nvcc's flags for these architectures (90 is sm_90), the newest as PTX besides."""
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    newest = max(architectures)
    return [*NVCC_FLAGS, *code, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def schemas() -> list[str]:
    """The operator schemas of `ops/`: module constants named `*SCHEMA`, read without importing anything."""
    found = []
    for path in sorted((PACKAGE / "ops").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").endswith("SCHEMA"):
                found.append(ast.literal_eval(node.value))
    return found


def library_key(flags: Sequence[str]) -> str:
    """Hash of all that must agree between a compiled library and this package: a library with another key is stale.

    A C++ signature that disagrees with a Python schema aborts the process when the library is opened, so the key is
    part of the file name and is compared before opening. The compilers and `Python.h` are not part of it (a machine
    without them must still recognise a prebuilt library); the just-in-time cache adds them.
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


if __name__ == "__main__":  # CMake asks for the flags of a level: python build.py x86-64-v3
    print(";".join(compile_flags(sys.argv[1])))
