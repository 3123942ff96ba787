"""Seconds that a call takes, on any clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Clock = Callable[[], float]


def seconds(run: Callable[[], object], clock: Clock = time.perf_counter, device: str = "cpu") -> float:
    """What `run` takes, until a GPU has done all that was asked of it; `device` tells whether there is one at work."""
    waits = "cuda" in device
    if waits:
        torch.cuda.synchronize()
    started = clock()
    run()
    if waits:
        torch.cuda.synchronize()
    return clock() - started
