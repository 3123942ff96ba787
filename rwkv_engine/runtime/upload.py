"""Copies tensors from files to GPUs, through page-locked pieces: one is filled from the file while another is copied.

Loading so takes no copy of a tensor in main memory, whatever its size, and no more page-locked memory than the pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rwkv_engine.models.queues import CudaQueue, Queue

PIECE = 32 << 20  # bytes, so that the start of a copy costs little beside it
PIECES = 2


class Uploads:
    """The way of tensors in main memory, such as those of a mapped file, to any GPU.

    Where the source is ordinary memory, CUDA makes the program wait until all of it is copied. Here the program waits
    only for a piece that it is about to fill again, so the file is read while the GPU copies.
    """

    def __init__(
        self,
        queue: Callable[[torch.device], Queue] = CudaQueue,
        page_locked: Callable[[int], Tensor] | None = None,
        piece: int = PIECE,
    ):
        """Allocates nothing yet.

        Args:
            queue: makes the queue that a GPU's kernels are submitted to.
            page_locked: makes a tensor (n,) uint8 in page-locked memory; by default torch does.
            piece: the bytes of a piece.
        """
        self._queue, self._page_locked, self._size = queue, page_locked or _pinned, piece
        self._pieces: list[Tensor] = []
        self._copied: list[Any] = [None] * PIECES  # for each piece the event that it was copied

    def to(self, tensor: Tensor, device: str) -> Tensor:
        """The tensor on a device; itself, if it is there already."""
        target = torch.device(device)
        if target.type != "cuda" or tensor.device.type != "cpu" or tensor.numel() == 0:
            return tensor.to(target)
        return self.copy(tensor, target)

    def copy(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy on a GPU, complete for all work that is submitted to the GPU's current stream later.

        The tensor may be changed or freed when this returns.
        """
        if not tensor.is_contiguous():
            # Of a matrix that a file stores transposed; a copy of it here would take memory for the whole matrix.
            return (
                self.copy(tensor.t(), device).t()
                if tensor.ndim == 2 and tensor.t().is_contiguous()
                else tensor.to(device)
            )
        self._pieces = self._pieces or [self._page_locked(self._size) for _ in range(PIECES)]
        copy = torch.empty_like(tensor, device=device)
        queue = self._queue(device)
        parts = zip(_bytes(tensor).split(self._size), _bytes(copy).split(self._size), strict=True)
        for i, (source, target) in enumerate(parts):
            which = i % PIECES
            if self._copied[which] is not None:
                self._copied[which].synchronize()
            piece = self._pieces[which][: len(source)]
            piece.copy_(source)
            queue.copy(target, piece)
            self._copied[which] = queue.record()
        return copy


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1).view(torch.uint8)


def _pinned(nbytes: int) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
