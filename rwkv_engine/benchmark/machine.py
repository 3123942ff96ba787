"""The machine and the versions that a report was made with."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rwkv_engine._version import __version__
from rwkv_engine.native import cpu_kernels, ways


def facts() -> dict[str, Any]:
    """Processor, memory, GPUs, versions, the command, and the time it was started."""
    kernels = cpu_kernels.status()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "instructions": kernels.level or torch.backends.cpu.get_cpu_capability(),
        "kernels": kernels.kind,
        "bf16_products": ways.bfloat16_way(kernels.level),
        "int8_products": ways.int8_way(kernels.level),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), "rwkv_engine": __version__} | _versions(),
        "command": f"{_program()} {shlex.join(sys.argv[1:])}",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _program() -> str:
    """How this program was started."""
    path = Path(sys.argv[0])
    return f"python -m bench.{path.stem}" if path.parent.name == "bench" else "rwkv-engine"


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "numpy", "rwkv", "transformers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    """The processor's name, with its family and model where Linux tells them: one name may stand for generations."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in facts:
        return name
    return f"{name} (family {facts['cpu family']}, model {facts.get('model')})"


def _memory() -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
