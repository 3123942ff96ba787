"""Copies between the host and a GPU, from and to page-locked memory."""

from __future__ import annotations

import torch
from torch import Tensor


def copy_to(to: Tensor, host: Tensor) -> None:
    """Copies a tensor on the CPU to one of the same shape and dtype on any device; `host` must not change afterwards.

    The driver would first copy pageable memory, and the caller wait for the GPU. From pinned memory the copy is one
    more piece of work of the current stream; torch keeps the memory until it is done.
    """
    if to.is_cuda:
        host = host.pin_memory()
    to.copy_(host, non_blocking=True)


def moved(host: Tensor, device: torch.device) -> Tensor:
    """A tensor on the CPU, on a device; see `copy_to`."""
    if device.type == "cpu":
        return host
    to = torch.empty_like(host, device=device)
    copy_to(to, host)
    return to


def host_buffer(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Zeros on the CPU, in memory from and to which a device copies without the driver's help."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


def wait_for(device: torch.device) -> None:
    """Waits until a device has done all work of its current stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def listed(ids: Tensor) -> list[int]:
    """Numbers (n,) int64 on any device as a list; the caller waits for the work of the device's current stream."""
    if ids.is_cuda:
        host = host_buffer((len(ids),), ids.device)
        host.copy_(ids, non_blocking=True)
        wait_for(ids.device)
        ids = host
    return ids.tolist()
