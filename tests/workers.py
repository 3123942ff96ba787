"""OpenMP's workers, for tests. Where a process's threads cannot be listed, modules that import this are skipped."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

TASKS = Path("/proc/self/task")
if not TASKS.exists():
    pytest.skip("needs /proc, which lists the threads of a process", allow_module_level=True)


def compute():
    """Has torch share a loop among threads."""
    torch.ones(1 << 20).add_(1)


def n_threads():
    """The number of threads that Python does not know: workers, and others that stay."""
    return len(list(TASKS.iterdir())) - threading.active_count()
