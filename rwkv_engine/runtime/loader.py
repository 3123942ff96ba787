"""checkpoint + strategy -> placed model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rwkv_engine import _extension, _extension_cuda
from rwkv_engine.core.checkpoint import Checkpoint
from rwkv_engine.core.strategy import Strategy
from rwkv_engine.errors import CheckpointError
from rwkv_engine.models import ARCHITECTURES, Rwkv4
from rwkv_engine.models.weights import Dense, InputMajor, Tiled

Progress = Callable[[int, int], None]


def load_model(
    checkpoint: Checkpoint, strategy: Strategy, progress: Progress | None = None, trainable: bool = False
) -> Rwkv4:
    """Copies the tensors, one at a time, to where the strategy wants them.

    Args:
        checkpoint: an opened checkpoint.
        strategy: a parsed strategy.
        progress: called after each tensor with the parameters placed so far and in all.
        trainable: keep matrices as training wants them, with gradients; else as kernels read them, without.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: the file is damaged, or holds NaN, infinity or numbers too large for the strategy.
    """
    config = checkpoint.config
    placements = strategy.place(config)
    fingerprint = checkpoint.fingerprint()
    with torch.device("meta"):
        model = ARCHITECTURES[config.version](config, fingerprint)
    # Without kernels tiles are only in the way.
    packed = {d: _has_kernels(d) and not trainable for d in {p.device for p in placements}}
    done = 0
    for name in checkpoint.names:
        stored = checkpoint.read(name)
        placement = placements[_layer_of(name, config.n_layer)]
        # Vectors stay float32: they are few, and exponentials and norms are made of them.
        dtype = placement.dtype if stored.ndim == 2 else torch.float32
        _check_finite(f"{checkpoint.path}: {name}", stored, dtype)
        _put(model, name, stored, placement.device, dtype, packed[placement.device])
        checkpoint.release(stored)
        done += stored.numel()
        if progress:
            progress(done, config.n_params)
    return model.eval().requires_grad_(trainable)


def _has_kernels(device: str) -> bool:
    kernels = _extension_cuda if device.startswith("cuda") else _extension
    return kernels.status().kind != "reference"


def _put(model: Rwkv4, name: str, stored: Tensor, device: str, dtype: torch.dtype, packed: bool) -> None:
    """Copies, even where nothing changes: the file may be replaced or truncated while the model runs."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if packed and isinstance(module, Dense):
        pack = InputMajor if path.endswith("ffn.value") else Tiled
        model.set_submodule(path, pack(stored.to(device), dtype))
    else:
        placed = stored.to(device, dtype, copy=True, memory_format=torch.contiguous_format)
        setattr(module, attribute, nn.Parameter(placed, requires_grad=False))


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
