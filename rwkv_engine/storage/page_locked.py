"""Page-locked (pinned) main memory, from which a GPU copies while the program goes on."""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress

import torch
from torch import Tensor

PORTABLE = 1  # cudaHostRegisterPortable: for all GPUs of the process


def page_locked(nbytes: int, device: torch.device) -> Tensor:
    """Zeros (nbytes,) uint8 in page-locked memory, which is unlocked when its storage is freed and the GPU is idle.

    torch's own allocator of such memory rounds up to a power of two, which costs gigabytes for the weights of a model.

    Raises:
        MemoryError: there is not enough memory, or the system does not allow to lock so much.
    """
    try:
        memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"out of memory: {nbytes / 1e9:,.2f} GB of main memory for streamed layers") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)  # the tensor's storage keeps it
    tensor = torch.frombuffer(view, dtype=torch.uint8)[:nbytes]
    address = tensor.data_ptr()
    status = int(torch.cuda.cudart().cudaHostRegister(address, len(memory), PORTABLE))
    if status != 0:
        raise MemoryError(
            f"out of memory: CUDA cannot lock {nbytes / 1e9:,.2f} GB of main memory for streamed layers"
            f" (cudaHostRegister returned {status})"
        )
    # At the end of the process the driver unlocks what is left.
    weakref.finalize(view, _unlock, address, memory, device).atexit = False
    return tensor


def _unlock(address: int, memory: mmap.mmap, device: torch.device) -> None:
    """Unlocks memory, which must not be unmapped before; so it is an argument here."""
    torch.cuda.synchronize(device)  # copies may still read it
    torch.cuda.cudart().cudaHostUnregister(address)
    del memory
