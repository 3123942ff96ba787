"""Every barrier of the CUDA kernels matters and is tested: without it a test must fail.

Usage: leave_out_barriers.py KERNELS TEST...      KERNELS: a folder; TEST: programs over the host emulation

The emulation makes the barrier at RWKV_EMULATION_WITHOUT=file:line do nothing, which needs no compiler. A barrier that
no test misses is either not tested or not needed. Prints a table; exits with 1 if a barrier is not missed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def barriers(folder: Path) -> dict[str, str]:
    """Each barrier in the sources, `file:line`, with its line."""
    found = {}
    for path in sorted(folder.iterdir()):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            calls = len(re.findall(r"\b__sync(?:threads|warp)\w*\s*\(", line.split("//")[0]))
            if calls > 1:
                sys.exit(f"{path.name}:{number}: two barriers in one line cannot be told apart")
            if calls:
                found[f"{path.name}:{number}"] = line.strip()
    return found


def run(test: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [test], env={**os.environ, **environment}, capture_output=True, text=True, errors="replace", timeout=600
    )


def main(folder: str, *tests: str) -> int:
    reached: dict[str, list[str]] = {}
    for test in tests:
        whole = run(test, RWKV_EMULATION_LIST="1")
        if whole.returncode != 0:
            sys.exit(f"{test} fails with all barriers in place:\n{whole.stdout}{whole.stderr}")
        for place in re.findall(r"^reached (\S+)$", whole.stdout, re.MULTILINE):
            reached.setdefault(place, []).append(test)
    missed = 0
    for place, line in barriers(Path(folder)).items():
        using = reached.get(place, [])
        noticed = [Path(test).name for test in using if run(test, RWKV_EMULATION_WITHOUT=place).returncode != 0]
        verdict = f"caught by {', '.join(noticed)}" if noticed else "NOT CAUGHT" if using else "NEVER REACHED"
        print(f"{place:36} {line:30} {verdict}")
        missed += not noticed
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
