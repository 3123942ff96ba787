"""Checks that the CPU's kernels and bindings compile against the oldest torch that the package's metadata allows.

    pip download --no-deps --dest FOLDER torch==2.11.0
    python -m tools.check_oldest_torch FOLDER/torch-2.11.0-*.whl

torch is not installed or imported: its headers are extracted from the wheel, and the C++ compiler type-checks every
source with the package's flags, preceded by those that this torch adds, such as `-std=c++17`. Warnings are errors. The
wheel may be for another version of Python.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rwkv_engine.native import build, toolkit


def unpack_headers(wheel: Path, folder: Path) -> list[str]:
    """Extracts torch's headers, and returns the compiler's flags that find them and the standard torch asks for."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("torch/include/")]
        archive.extractall(folder, names)
        extension = archive.read("torch/utils/cpp_extension.py").decode()
    [standard] = set(re.findall(r"cflags = common_cflags \+ \['-fPIC', '(-std=[^']+)'\]", extension))
    include = folder / "torch" / "include"
    folders = [include, include / "torch" / "csrc" / "api" / "include", Path(sysconfig.get_path("include"))]
    return ["-fPIC", standard, *(part for path in folders for part in ("-isystem", str(path)))]


def failures(torch_flags: list[str], jobs: int) -> list[str]:
    """The compiler's output for each source that does not compile."""
    compiler = toolkit.cxx_command()
    level = next(iter(build.LEVELS))

    def check(source: Path) -> str:
        flags = [*torch_flags, f"-I{build.source_root()}", *build.compile_flags(level)]
        command = [*compiler, "-DTORCH_EXTENSION_NAME=check", *flags, "-Werror", "-fsyntax-only", str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stderr if result.returncode else ""

    with ThreadPoolExecutor(jobs) as pool:
        return [text for text in pool.map(check, build.sources()) if text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="torch's wheel, of the oldest version that pyproject.toml allows")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch_flags = unpack_headers(args.wheel, Path(folder))
        wrong = failures(torch_flags, args.jobs)
    print("\n".join(wrong) or f"{len(build.sources())} sources compile with {args.wheel.name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
