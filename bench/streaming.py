"""Simulates the time of a forward pass with streamed layers, for given times of a layer's copy and of its work.

    python -m bench.streaming [--layers 32] [--buffers 2] [--copy-ms 4.4 --compute-ms 0.04]

The engine's own schedule runs on queues that only add up times. `bound` is layers x max(copy, compute): no schedule
that copies every layer in every pass is faster. Without times it prints a table from copies that take no time to
copies that take all of it.
"""

from __future__ import annotations

import argparse
import math

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rwkv_engine.models.queues import Queues
from rwkv_engine.models.streaming import Streaming

RATIOS = (0.01, 0.1, 0.5, 0.9, 1.0, 1.1, 2.0, 10.0, 100.0)  # of copy to compute


class Clock:
    """A queue whose work takes no time but the one it is told."""

    def __init__(self, seconds: float = 0.0):
        self.now, self.seconds = 0.0, seconds

    def record(self) -> float:
        return self.now

    def wait(self, event: float) -> None:
        self.now = max(self.now, event)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.now += self.seconds


def simulated(layers: int, copy: float, compute: float, buffers: int = 2, passes: int = 3) -> float:
    """Seconds of one of several forward passes in which all layers are streamed."""
    queues = Queues(Clock(), Clock(copy))
    hosts = {layer: torch.empty(1, dtype=torch.uint8) for layer in range(layers)}
    streaming = Streaming(hosts, [torch.empty(1, dtype=torch.uint8) for _ in range(buffers)], queues)
    for _ in range(passes):
        with streaming.forward_pass():
            for layer in range(layers):
                with streaming.layer(layer):
                    queues.compute.now += compute  # type: ignore[attr-defined]
    return queues.compute.record() / passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--buffers", type=int, default=2)
    parser.add_argument("--copy-ms", type=float)
    parser.add_argument("--compute-ms", type=float)
    given = parser.parse_args()
    if (given.copy_ms is None) != (given.compute_ms is None):
        parser.error("give both --copy-ms and --compute-ms, or none of them")
    times = [(r, 1.0) for r in RATIOS] if given.copy_ms is None else [(given.copy_ms, given.compute_ms)]
    table = Table("copy ms", "compute ms", "pass ms", "bound ms", "pass / bound", box=box.MARKDOWN)
    for copy, compute in times:
        seconds, bound = simulated(given.layers, copy, compute, given.buffers), given.layers * max(copy, compute)
        ratio = seconds / bound if bound else math.nan
        table.add_row(f"{copy:g}", f"{compute:g}", f"{seconds:.2f}", f"{bound:.2f}", f"{ratio:.3f}")
    Console().print(f"{given.layers} streamed layers, {given.buffers} buffers", table)


if __name__ == "__main__":
    main()
