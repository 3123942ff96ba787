"""A script in the place of nvcc, for tests of what is found and asked for where no CUDA toolkit is installed."""

from __future__ import annotations

from pathlib import Path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_nvcc(home: Path, version: str = "13.0.88", architectures: str = "75 80 90", compiling: str = "exit 1") -> Path:
    """A script that answers as nvcc does, and when it is to compile does what `compiling` says."""
    listed = " ".join(f"compute_{a}" for a in architectures.split())
    return script(
        home / "bin" / "nvcc",
        f"""case "$1" in
--version) echo "nvcc: NVIDIA (R) Cuda compiler driver"; echo "Cuda compilation tools, release 13.0, V{version}" ;;
--list-gpu-arch) for a in {listed}; do echo $a; done ;;
--dryrun) echo "#$ TOP={home}/toolkit/.." >&2 ;;
*) {compiling} ;;
esac""",
    )
