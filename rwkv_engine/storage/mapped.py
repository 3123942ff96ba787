"""Releases the memory pages of a mapped file after a tensor in it has been read."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor


def release_pages(tensor: Tensor) -> None:
    """Drops the resident pages that lie completely inside `tensor`, if they belong to a mapped file.

    A later access reads them from the file again. Memory that does not belong to a file is left unchanged, because its
    contents would be lost. On systems other than Linux, which do not tell the two apart, nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if end > start and _inside_a_mapped_file(start, end):
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _inside_a_mapped_file(start: int, end: int) -> bool:
    with open("/proc/self/maps") as maps:
        for line in maps:  # "7f0c0000-7f0c2000 r--p 00000000 08:01 1234 /path"
            span, _, _, _, inode = line.split()[:5]
            low, high = (int(part, 16) for part in span.split("-"))
            if low <= start < high:
                return end <= high and inode != "0"
    return False


_libc = ctypes.CDLL(None, use_errno=True)
