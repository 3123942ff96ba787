"""Recording a function's kernels once, to launch all of them at once ever after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# A function that only works on tensors which stay where they are -> the same, perhaps recorded. Calling what it returns
# does what calling the function would do; making it may call the function any number of times.
Capture = Callable[[Callable[[], None]], Callable[[], None]]

WARM_UPS = 3  # libraries allocate and choose algorithms in their first calls, which cannot be recorded


def eager(function: Callable[[], None]) -> Callable[[], None]:
    """No recording."""
    return function


def cuda_graph(device: torch.device) -> Capture:
    """Recording in a CUDA graph, whose replay runs on the device's current stream.

    As the notes on CUDA semantics of torch ask: warmed up on a side stream, and then the default pool of memory is left
    alone, since what the function allocates is the graph's own. All recordings of one `Capture` allocate from one pool,
    so they must not run at the same time, and results go into tensors made outside. While one thread records, others
    may allocate.
    """
    memory: list[Any] = []  # the pool of all recordings, once there is one

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
