"""Memory in huge pages, in which weights are read faster: the processor translates fewer addresses."""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from contextlib import suppress

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes
# Tensors share regions of this size, because each alone would leave much of its last page of 2 MB unused. Memory that
# is not written to takes no room.
REGION = 64 << 20
# A tensor may be freed while another one is made, by the same thread, so the lock is reentrant.
_lock = threading.RLock()
_latest: _Region | None = None


class _Region:
    """Memory that is handed out from its beginning to its end; its pages are freed once it holds no tensor."""

    def __init__(self, size: int):
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a system without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._size, self._used, self._tensors = size, 0, 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """A tensor in memory that is still unused; None if there is not enough."""
        count, start = math.prod(shape), -(-self._used // ALIGNMENT) * ALIGNMENT
        if start + count * dtype.itemsize > self._size:
            return None
        self._tensors += 1
        self._used = start + count * dtype.itemsize
        part = memoryview(self._memory)[start : self._used]  # the tensor's storage keeps it
        weakref.finalize(part, self._release)
        return torch.frombuffer(part, dtype=dtype, count=count).view(shape)

    def _release(self) -> None:
        with _lock:
            self._tensors -= 1
            if not self._tensors:
                self._used = 0
                self._memory.madvise(mmap.MADV_DONTNEED)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """As `torch.empty`, but on the CPU in huge pages if the system grants them; for tensors that live long.

    Raises:
        OSError: there is not enough memory.
    """
    global _latest
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    with _lock:
        if size > REGION // 4:
            tensor = _Region(size).take(shape, dtype)
        elif _latest is None or (tensor := _latest.take(shape, dtype)) is None:
            _latest = _Region(REGION)
            tensor = _latest.take(shape, dtype)
    assert tensor is not None
    return tensor
