"""checkpoint + strategy -> placed model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rwkv_engine.core.checkpoint import Checkpoint
from rwkv_engine.core.strategy import Placement, Strategy
from rwkv_engine.models import ARCHITECTURES, Rwkv4

Progress = Callable[[int, int], None]


def load_model(checkpoint: Checkpoint, strategy: Strategy, progress: Progress | None = None) -> Rwkv4:
    """Copies the tensors, one at a time, to where the strategy wants them.

    Args:
        checkpoint: an opened checkpoint.
        strategy: a parsed strategy.
        progress: called after each tensor with the parameters placed so far and in all.

    Returns:
        The model in evaluation mode, its parameters without gradients.
    """
    config = checkpoint.config
    placements = strategy.place(config)
    fingerprint = checkpoint.fingerprint()
    with torch.device("meta"):
        model = ARCHITECTURES[config.version](config, fingerprint)
    placed: dict[str, Tensor] = {}
    done = 0
    for name in checkpoint.names:
        stored = checkpoint.read(name)
        placement = placements[_layer_of(name, config.n_layer)]
        # Copied even where nothing changes: the file may be replaced or truncated while the model runs.
        placed[name] = _place(stored, placement)
        checkpoint.release(stored)
        done += stored.numel()
        if progress:
            progress(done, config.n_params)
    model.load_state_dict({n: nn.Parameter(t, requires_grad=False) for n, t in placed.items()}, assign=True)
    return model.requires_grad_(False).eval()


def _place(stored: Tensor, placement: Placement) -> Tensor:
    """Vectors stay float32: they are few, and exponentials and norms are made of them."""
    dtype = placement.dtype if stored.ndim == 2 else torch.float32
    return stored.to(placement.device, dtype, copy=True, memory_format=torch.contiguous_format)


def _layer_of(name: str, n_layer: int) -> int:
    """Index of a tensor's placement: the embedding lives with the first layer, the head is one more layer."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return 0 if name.startswith("emb.") else n_layer
