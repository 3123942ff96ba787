"""Memory in huge pages, in which weights are read faster: the processor translates fewer addresses."""

from __future__ import annotations

import math
import mmap
import threading
from contextlib import suppress

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes
# Tensors share regions of this size, because each alone would leave much of its last page of 2 MB unused. Memory that
# is not written to takes no room.
REGION = 64 << 20


class _Region:
    """Memory that is handed out from its beginning to its end, and freed with the last tensor in it."""

    def __init__(self, size: int):
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a system without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._size, self._used = size, 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """A tensor in memory that is still unused; None if there is not enough."""
        count, start = math.prod(shape), -(-self._used // ALIGNMENT) * ALIGNMENT
        if start + count * dtype.itemsize > self._size:
            return None
        self._used = start + count * dtype.itemsize
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start).view(shape)


_lock = threading.Lock()
_latest: _Region | None = None


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """As `torch.empty`, but on the CPU in huge pages if the system grants them; for tensors that live long.

    Raises:
        OSError: there is not enough memory.
    """
    global _latest
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    if size > REGION // 4:
        tensor = _Region(size).take(shape, dtype)
    else:
        with _lock:
            if _latest is None or (tensor := _latest.take(shape, dtype)) is None:
                _latest = _Region(REGION)
                tensor = _latest.take(shape, dtype)
    assert tensor is not None
    return tensor
