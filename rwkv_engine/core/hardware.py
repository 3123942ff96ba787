"""The number of GPUs that torch can use, and the free memory of a device."""

from __future__ import annotations

import torch

from rwkv_engine.core.main_memory import free_main_memory


def gpu_count() -> int:
    """The number of GPUs that torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_index(device: str) -> int:
    """The index of a GPU by the name of its device: 0 for "cuda", 1 for "cuda:1"."""
    return int(device.partition(":")[2] or 0)


def free_memory(device: str) -> int | None:
    """The free bytes of a device ("cpu", "cuda", "cuda:1"), or None if they are unknown."""
    if device.startswith("cuda") and gpu_index(device) < gpu_count():
        return torch.cuda.mem_get_info(device)[0]
    return free_main_memory() if device == "cpu" else None
