"""Captures the kernels that a function launches as a CUDA graph, which then launches all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Takes a function that works on tensors at fixed addresses, and returns one with the same effect, perhaps a CUDA graph.
# Capturing may call the given function any number of times.
Capture = Callable[[Callable[[], None]], Callable[[], None]]

WARM_UPS = 3  # in their first calls libraries allocate memory and choose algorithms, which a graph cannot capture


def eager(function: Callable[[], None]) -> Callable[[], None]:
    """The `Capture` that captures nothing."""
    return function


def cuda_graph(device: torch.device) -> Capture:
    """A `Capture` that makes a CUDA graph, which is replayed on the device's current stream.

    As torch's notes on CUDA semantics require, the function is warmed up on a side stream, and the memory that it
    allocates while it is captured belongs to the graph. All graphs of one `Capture` share a memory pool, so two of
    them must not run at the same time. A result that is still referenced keeps its address and is not overwritten by
    another graph; the last call of the function is the captured one. Other threads may allocate memory during a
    capture.
    """
    memory: list[Any] = []  # the memory pool of all graphs, after the first capture

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    function()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            if not memory:
                memory.append(torch.cuda.graph_pool_handle())
            with torch.cuda.graph(graph, pool=memory[0], capture_error_mode="thread_local"):
                function()

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay

    return capture
