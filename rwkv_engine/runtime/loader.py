"""checkpoint + strategy -> placed model."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rwkv_engine import _extension, _extension_cuda
from rwkv_engine._jit import say
from rwkv_engine.core.checkpoint import Checkpoint
from rwkv_engine.core.packed import ALIGNMENT
from rwkv_engine.core.strategy import Placement, Strategy
from rwkv_engine.errors import CheckpointError
from rwkv_engine.models import ARCHITECTURES, Rwkv4
from rwkv_engine.models.arrange import arrange, arranged_shape, form_of
from rwkv_engine.models.weights import InputMajor, Tiled

Progress = Callable[[int, int], None]


def load_model(
    checkpoint: Checkpoint, strategy: Strategy, progress: Progress | None = None, trainable: bool = False
) -> Rwkv4:
    """Copies the tensors, one at a time, to where the strategy wants them; a packed file's are used where they lie.

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
    # Without kernels tiles are only in the way. Asking loads those of a GPU, of which training wants wkv4's too.
    packed = {device: _has_kernels(device) and not trainable for device in {p.device for p in placements}}
    said, done = False, 0
    for name, shape in config.tensor_shapes().items():
        placement = placements[layer_of(name, config.n_layer)]
        dtype = placed_dtype(placement, shape)
        form = form_of(name, shape) if packed[placement.device] else "rows"
        ready = None if trainable else _ready(checkpoint, name, shape, form, dtype)
        if ready is not None:
            # Its numbers were looked at when it was packed; doing so again would read the whole file.
            placed = ready.to(placement.device)
            if placed is not ready:
                checkpoint.release(ready)
        else:
            if checkpoint.packing and not said:
                wanted = "training" if trainable else str(strategy) if packed[placement.device] else "plain torch"
                say(f"{checkpoint.path}: packed, {checkpoint.packing}; converting it for {wanted}")
                said = True
            placed = converted(checkpoint, name, form, dtype, placement.device)
        _put(model, name, shape, form, placed)
        done += math.prod(shape)
        if progress:
            progress(done, config.n_params)
    return model.eval().requires_grad_(trainable)


def _has_kernels(device: str) -> bool:
    kernels = _extension_cuda if device.startswith("cuda") else _extension
    return kernels.status().kind != "reference"


def converted(checkpoint: Checkpoint, name: str, form: str, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """One tensor as it is wanted, copied out of the file.

    Raises:
        CheckpointError: the file is damaged, or holds NaN, infinity or numbers too large for `dtype`.
    """
    stored = checkpoint.read(name)
    check_finite(f"{checkpoint.path}: {name}", stored, dtype)
    arranged = arrange(stored.to(device), form, dtype)
    checkpoint.release(stored)
    return arranged


def _ready(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], form: str, dtype: torch.dtype) -> Tensor | None:
    """A packed file's tensor, if it lies there as it is wanted; a view of the mapped file."""
    tensor = checkpoint.read_arranged(name, form)
    if tensor is None or tensor.dtype != dtype or tensor.shape != arranged_shape(form, shape, dtype):
        return None
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else None  # another program may have written it anew


def _put(model: Rwkv4, name: str, shape: tuple[int, ...], form: str, placed: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    if form == "tiles":
        model.set_submodule(path, Tiled(placed, shape[0], shape[1]))
    elif form == "input_major":
        model.set_submodule(path, InputMajor(placed))
    else:
        setattr(model.get_submodule(path), attribute, nn.Parameter(placed, requires_grad=False))


def placed_dtype(placement: Placement, shape: tuple[int, ...]) -> torch.dtype:
    """Vectors stay float32: they are few, and exponentials and norms are made of them."""
    return placement.dtype if len(shape) == 2 else torch.float32


def check_finite(what: str, stored: Tensor, dtype: torch.dtype) -> None:
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


def layer_of(name: str, n_layer: int) -> int:
    """Index of a tensor's placement: the embedding lives with the first layer, the head is one more layer."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return 0 if name.startswith("emb.") else n_layer
