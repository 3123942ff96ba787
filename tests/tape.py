"""A recording as CUDA graphs make it, without CUDA: operators and the tensors they worked on, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What makes the host wait for a GPU, or copies from the host's memory; a graph can record neither.
ASKS_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "is_nonzero", "equal")


class Tape(TorchDispatchMode):
    """Runs what is done under it, and remembers it."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in ASKS_THE_HOST:
            raise AssertionError(f"{name} cannot be recorded")
        result = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """All of it again, each result where it was."""
        for operator, args, kwargs, result in self.calls:
            again = operator(*args, **kwargs)
            for new, old in zip(tree_leaves(again), tree_leaves(result), strict=True):
                if isinstance(old, torch.Tensor) and new is not old:
                    old.copy_(new)


def tape(function: Callable[[], None]) -> Callable[[], None]:
    """A `Capture`: warms up, records, and replays without ever calling the function again."""
    function()
    recording = Tape()
    with recording:
        function()
    return recording.replay
