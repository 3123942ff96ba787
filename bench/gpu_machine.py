"""The peak performance of a GPU: the speed of copies and matrix products in torch."""

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
    """Exits with a one-line message if there is no usable GPU."""
    problem = toolkit.gpu_problem()
    if problem:
        sys.exit(f"this measures a GPU, and there is none that torch can use: {problem}")


def median_seconds(run: Callable[[], object], repeats: int = 10, limit: float = 20.0) -> float:
    """The median time of a call, after one warm-up call; fewer repeats if they would exceed `limit` seconds."""
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
    """The bandwidth of a copy in GB/s, counting the bytes read and the bytes written."""
    a = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * COPIED / median_seconds(lambda: b.copy_(a), 20) / 1e9


def matrix_peak(dtype: torch.dtype) -> float:
    """The TFLOPS of a large matrix product."""
    a, b = (torch.randn(SIDE, SIDE, device="cuda").to(dtype) for _ in range(2))
    return 2 * SIDE**3 / median_seconds(lambda: a @ b, 20) / 1e12
