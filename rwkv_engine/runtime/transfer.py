"""Copies from the host to a GPU that neither thread waits for."""

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
