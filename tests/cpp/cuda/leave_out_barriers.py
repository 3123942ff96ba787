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
from concurrent.futures import ThreadPoolExecutor
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


def places_reached(test: str) -> list[str]:
    environment = {**os.environ, "RWKV_EMULATION_LIST": "1"}
    whole = subprocess.run([test], env=environment, capture_output=True, text=True, errors="replace")
    if whole.returncode != 0 or whole.stderr:
        sys.exit(f"{test} fails with all barriers in place:\n{whole.stdout}{whole.stderr}")
    return re.findall(r"^reached (\S+)$", whole.stdout, re.MULTILINE)


def fails_without(place: str, test: str) -> bool:
    """Whether the test fails; the first complaint is enough."""
    environment = {**os.environ, "RWKV_EMULATION_WITHOUT": place}
    process = subprocess.Popen([test], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        complaint = process.stderr.readline()
        if complaint:
            process.kill()
    return bool(complaint) or process.returncode != 0


def main(folder: str, *tests: str) -> int:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reached: dict[str, list[str]] = {}
        for test, places in zip(tests, pool.map(places_reached, tests), strict=True):
            for place in places:
                reached.setdefault(place, []).append(test)

        def catcher(place: str) -> str | None:
            return next((test for test in reached.get(place, []) if fails_without(place, test)), None)

        lines = barriers(Path(folder))
        missed = 0
        for (place, line), test in zip(lines.items(), pool.map(catcher, lines), strict=True):
            verdict = f"caught by {Path(test).name}" if test else "NOT CAUGHT" if place in reached else "NEVER REACHED"
            print(f"{place:36} {line:30} {verdict}", flush=True)
            missed += test is None
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
