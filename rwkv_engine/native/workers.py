"""The worker threads of OpenMP, of which every thread that has computed keeps some of its own.

While the process has more of them than processors, even if most are idle, GNU's OpenMP no longer lets them wait
actively for the next loop. A pass of 200 loops then takes 1.2 to 1.6 times as long, so a thread that leaves the work to
another one ends its workers first. It starts others when it computes again, which takes microseconds.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable

import torch

_SOFT = 1  # omp_pause_soft: settings stay as they are
_PROCESS = os.getpid()  # a process forked from it has none of these threads, and would wait for them


def end_workers() -> None:
    """Ends those of the calling thread. Nothing happens where OpenMP shares them, or cannot end them."""
    if os.getpid() == _PROCESS and (end := _ending()):
        end()


@functools.cache
def _ending() -> Callable[[], object] | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(torch._C.__file__)  # with what it is linked to, so with the OpenMP that torch uses
    try:
        return functools.partial(library.omp_pause_resource, _SOFT, library.omp_get_initial_device())
    except AttributeError:  # it has none, or an older one
        return None
