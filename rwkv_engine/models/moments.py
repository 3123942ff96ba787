"""Second moments of the inputs of matrices, from the weights before them, for inputs of mean 0 and variance 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rwkv_engine.models.int4 import PIECE
from rwkv_engine.models.sums import summed

Read = Callable[[str], Tensor]  # a tensor of the checkpoint by its original name


def of_norm(name: str, read: Read) -> Tensor:
    """The second moments of what a LayerNorm or GroupNorm puts out, (C,) float64."""
    return read(f"{name}.weight").double().square() + read(f"{name}.bias").double().square()


def of_product(name: str, moments: Tensor, read: Read) -> Tensor:
    """The second moments of W x, (N,) float64, given those of x (K,), for inputs that are not correlated."""
    parts = read(name).split(PIECE)
    return torch.cat([summed(part.double().square().mul_(moments), 1) for part in parts])
