"""The pages of mapped files: large ones where a file is read often, and releasing them after it has been read once."""

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
    if end > start and end <= _mapped_file_at(start)[1]:
        _advise(start, end, mmap.MADV_DONTNEED)


def prefer_huge_pages(tensor: Tensor) -> None:
    """Asks that the mapped file which contains `tensor` be read in huge pages from now on.

    Pages of the file that are in memory already stay as they are. Nothing happens if `tensor` is not in a mapped file,
    or where the system or the file system has no huge pages for files.
    """
    if sys.platform.startswith("linux") and hasattr(mmap, "MADV_HUGEPAGE"):
        start, end = _mapped_file_at(tensor.data_ptr())
        if end > start:
            _advise(start, end, mmap.MADV_HUGEPAGE)


def _mapped_file_at(address: int) -> tuple[int, int]:
    """Begin and end of the mapping of a file at this address; twice 0 if there is other memory, or none."""
    with open("/proc/self/maps") as maps:
        for line in maps:  # "7f0c0000-7f0c2000 r--p 00000000 08:01 1234 /path"
            span, _, _, _, inode = line.split()[:5]
            low, high = (int(part, 16) for part in span.split("-"))
            if low <= address < high:
                return (low, high) if inode != "0" else (0, 0)
    return 0, 0


def _advise(start: int, end: int, advice: int) -> None:
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


_libc = ctypes.CDLL(None, use_errno=True)
