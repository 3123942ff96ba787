"""Compiles the CUDA kernels and type-checks their bindings without a GPU, with the flags of a real build.

    python -m tools.check_cuda

nvcc compiles every kernel for all of `ARCHITECTURES` that it knows. The registers and spills that ptxas reports are
printed, and a spill in a kernel of `NO_SPILLS` is an error. The C++ compiler type-checks every binding against the
installed torch; a header that torch's CPU build lacks is generated empty. Warnings are errors. Without nvcc the script
says that it checks nothing; `--require` makes that an error.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch.utils import cpp_extension

from rwkv_engine.native import build, toolkit

# Files with kernels of decoding, which are memory-bound, so spilled registers would slow them down; and of wkv7,
# which keep states in registers.
NO_SPILLS = ("linear", "norm_linear", "residual_product", "*_mixing?_step", "wkv7*")
# Those of a default build, and the later generations, for which ptxas allocates registers in another way.
ARCHITECTURES = (*build.ARCHITECTURES, 100, 120)
TORCH_DEFINES = ("-DTORCH_EXTENSION_NAME=check", "-DTORCH_API_INCLUDE_EXTENSION_H")


@dataclass(frozen=True)
class Use:
    """The resources of one kernel on one architecture, as ptxas reports them."""

    kernel: str
    architecture: str
    registers: int
    spills: int  # bytes, stores and loads


def includes(toolkit: Path) -> list[str]:
    """The compiler flags for include paths, as in torch's just-in-time build."""
    folders = [*cpp_extension.include_paths("cpu"), str(toolkit / "include"), sysconfig.get_path("include")]
    return [f"-I{build.source_root()}", *(part for folder in folders for part in ("-isystem", folder))]


def kernel_command(nvcc: toolkit.Nvcc, source: Path, architectures: tuple[int, ...], target: Path) -> list[str]:
    torchs = [*TORCH_DEFINES, *includes(nvcc.root), *cpp_extension.COMMON_NVCC_FLAGS, "--compiler-options", "-fPIC"]
    return [str(nvcc.path), *torchs, *build.nvcc_flags(architectures), "-c", str(source), "-o", str(target)]


def binding_command(nvcc: toolkit.Nvcc, source: Path, target: Path) -> list[str]:
    compiler = toolkit.cxx_command()
    torchs = [*TORCH_DEFINES, *includes(nvcc.root), "-fPIC"]
    return [*compiler, *torchs, *build.CUDA_BINDING_FLAGS, "-c", str(source), "-o", str(target)]


def uses(report: str) -> list[Use]:
    """Parses the output of `ptxas -v`; the spills of a function that is not inlined count for the kernel before it."""
    found, kernel, architecture, spills = [], "", "", 0
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            kernel, architecture, spills = entry[1], entry[2], 0
        elif spilled := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spills += int(spilled[1]) + int(spilled[2])
        elif used := re.search(r"Used (\d+) registers", line):
            found.append(Use(kernel, architecture, int(used[1]), spills))
    return found


def demangled(names: set[str]) -> dict[str, str]:
    """The demangled names without parameters, such as `linear_kernel<float, 4>`."""
    order = sorted(names)
    try:
        result = subprocess.run(["c++filt", "-p"], input="\n".join(order), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {name: name for name in order}
    return {a: b.removeprefix("void ") for a, b in zip(order, result.stdout.splitlines(), strict=True)}


def table(rows: list[Use]) -> list[str]:
    """One line for each kernel: the most registers of an instantiation, and all spilled bytes, by architecture."""
    architectures = sorted({use.architecture for use in rows})
    kernels = defaultdict(list)
    for use in rows:
        kernels[re.sub(r"<.*", "", use.kernel).rpartition("::")[2]].append(use)
    lines = [f"{'kernel (instantiations)':<44}" + "".join(f"{a:>8} regs  spills" for a in architectures)]
    for kernel, all_uses in sorted(kernels.items()):
        cells = []
        for architecture in architectures:
            mine = [use for use in all_uses if use.architecture == architecture]
            cells.append(f"{max(u.registers for u in mine):>13}{sum(u.spills for u in mine):>8}")
        lines.append(f"{f'{kernel} ({len(mine)})':<44}{''.join(cells)}")
    return lines


def run(command: list[str]) -> tuple[str, bool]:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr, result.returncode == 0


def check(nvcc: toolkit.Nvcc, sources: list[Path], jobs: int) -> list[str]:
    """Compiles all sources and prints the table; returns one text for each failure."""
    wrong, rows = [], []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        missing = Path(folder, "c10", "cuda", "impl", "cuda_cmake_macros.h")
        missing.parent.mkdir(parents=True)
        missing.touch()

        def compile_one(source: Path) -> tuple[str, bool]:
            target = Path(folder, f"{source.name}.o")
            if source.suffix == ".cu":
                architectures = tuple(a for a in ARCHITECTURES if a in nvcc.architectures)
                strict = ["-Xptxas=-v", "-Werror=all-warnings", "-Xcompiler=-Werror"]
                return run([*kernel_command(nvcc, source, architectures, target), *strict])
            return run([*binding_command(nvcc, source, target), "-Werror", "-fsyntax-only", f"-isystem{folder}"])

        for source, (output, succeeded) in zip(sources, pool.map(compile_one, sources), strict=True):
            if not succeeded:
                wrong.append(f"{source}:\n{output}")
                continue
            print(f"{source.name}: {'compiled' if source.suffix == '.cu' else 'type-checked'}", flush=True)
            used = uses(output)
            names = demangled({use.kernel for use in used})
            used = [Use(names[u.kernel], u.architecture, u.registers, u.spills) for u in used]
            rows += used
            if any(fnmatch.fnmatch(source.stem, pattern) for pattern in NO_SPILLS):
                wrong += [
                    f"{source.name}: {u.kernel} spills {u.spills} bytes on {u.architecture}" for u in used if u.spills
                ]
    print("\n".join(table(rows)) if rows else "no kernels")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", action="store_true", help="fail if there is no nvcc")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    args = parser.parse_args()
    nvcc = toolkit.find_nvcc()
    if nvcc is None or not nvcc.architectures:
        print(f"the CUDA kernels are not compiled here: {nvcc or f'no nvcc in {toolkit.NVCC_PLACES}'}")
        return 1 if args.require else 0
    print(f"{nvcc} for {', '.join(f'sm_{a}' for a in ARCHITECTURES if a in nvcc.architectures)}", flush=True)
    wrong = check(nvcc, build.cuda_sources(), args.jobs)
    for text in wrong:
        print(f"error: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
