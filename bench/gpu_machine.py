"""What a GPU can do at best: bytes copied and products of matrices, in torch's own words."""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable

import torch

from rwkv_engine.benchmark.instruments import seconds
from rwkv_engine.native import toolkit

COPIED = 1 << 31  # bytes, far more than any cache
SIDE = 8192  # of the matrices


def require_gpu() -> None:
    """Ends the program with one line where there is none."""
    problem = toolkit.gpu_problem()
    if problem:
        sys.exit(f"this measures a GPU, and there is none that torch can use: {problem}")


def median_seconds(run: Callable[[], object], repeats: int = 10, limit: float = 20.0) -> float:
    """After one call to warm up; fewer repeats where they would take longer than `limit` seconds."""
    once = seconds(run, device="cuda")
    return statistics.median(
        seconds(run, device="cuda") for _ in range(max(1, min(repeats, int(limit / max(once, 1e-6)))))
    )


def facts() -> dict[str, object]:
    major, minor = torch.cuda.get_device_capability()
    free, total = torch.cuda.mem_get_info()
    return {
        "gpu": torch.cuda.get_device_name(),
        "architecture": f"sm_{major}{minor}",
        "memory_gb": round(total / 1e9, 1),
        "free_gb": round(free / 1e9, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": str(toolkit.find_nvcc()),
        "python": platform.python_version(),
    }


def copy_bandwidth() -> float:
    """GB/s, read and written bytes together."""
    a = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * COPIED / median_seconds(lambda: b.copy_(a), 20) / 1e9


def matrix_peak(dtype: torch.dtype) -> float:
    """TFLOPS of a large product."""
    a, b = (torch.randn(SIDE, SIDE, device="cuda").to(dtype) for _ in range(2))
    return 2 * SIDE**3 / median_seconds(lambda: a @ b, 20) / 1e12
