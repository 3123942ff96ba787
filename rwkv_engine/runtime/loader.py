"""checkpoint + strategy -> placed model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rwkv_engine.core.checkpoint import Checkpoint
from rwkv_engine.core.strategy import Strategy
from rwkv_engine.errors import CheckpointError
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

    Raises:
        CheckpointError: the file is damaged, or holds NaN, infinity or numbers too large for the strategy.
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
        # Vectors stay float32: they are few, and exponentials and norms are made of them.
        dtype = placement.dtype if stored.ndim == 2 else torch.float32
        _check_finite(f"{checkpoint.path}: {name}", stored, dtype)
        # Copied even where nothing changes: the file may be replaced or truncated while the model runs.
        placed[name] = stored.to(placement.device, dtype, copy=True, memory_format=torch.contiguous_format)
        checkpoint.release(stored)
        done += stored.numel()
        if progress:
            progress(done, config.n_params)
    model.load_state_dict({n: nn.Parameter(t, requires_grad=False) for n, t in placed.items()}, assign=True)
    return model.requires_grad_(False).eval()


def _check_finite(what: str, stored: Tensor, dtype: torch.dtype) -> None:
    """Refuses NaN and infinity, whether the file has them or the conversion to `dtype` would make them.

    The smallest and the largest number tell (a NaN is both): one pass, a tenth of the copy's time, and no memory.
    """
    extremes = torch.stack(stored.aminmax())
    if extremes.to(dtype).isfinite().all():
        return
    if extremes.isfinite().all():
        largest = f"{extremes.abs().max().item():.3g}"
        raise CheckpointError(f"{what}: holds numbers up to {largest}, too large for {dtype}; choose a wider type")
    wrong = sum(int((~part.isfinite()).sum()) for part in stored.flatten().split(1 << 20))
    raise CheckpointError(
        f"{what}: {wrong} of {stored.numel()} numbers are NaN or infinite: the file is damaged, or the training"
        " diverged; download it again or take an earlier checkpoint"
    )


def _layer_of(name: str, n_layer: int) -> int:
    """Index of a tensor's placement: the embedding lives with the first layer, the head is one more layer."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return 0 if name.startswith("emb.") else n_layer
