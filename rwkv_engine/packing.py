"""Packing a model: its matrices written as kernels read them, see `core.packed`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from rwkv_engine.core import Checkpoint, Strategy
from rwkv_engine.core.packed import PackedMatrix, Packing, pack_tensors
from rwkv_engine.core.strategy import DTYPES
from rwkv_engine.errors import CheckpointError, StrategyError
from rwkv_engine.models.arrange import arranged_shape, form_of
from rwkv_engine.runtime.loader import converted, layer_of, placed_dtype

SUFFIX = ".safetensors"


def pack(
    model: Path, output: Path, strategy: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Packing:
    """Writes a packed file, whole or not at all; holds one matrix at a time.

    Args:
        model: path of a checkpoint, see `Checkpoint`; a packed one too.
        output: a file of this name is replaced.
        strategy: the one the file is for: each layer is packed in the precision it has there. None keeps that in which
            the head is stored.
        progress: called after each tensor with the parameters written so far and in all.

    Returns:
        What the file tells of itself.

    Raises:
        CheckpointError: the model is damaged, or holds NaN, infinity or numbers too large for the strategy; or the file
            cannot be written.
        StrategyError: the strategy cannot be parsed, does not fit this model, or quantises.
    """
    if output.suffix != SUFFIX:
        raise CheckpointError(f"{output}: packed files are known by their name; expected one that ends in {SUFFIX}")
    if output.exists() and not output.is_file():
        raise CheckpointError(f"{output}: is no file; nothing was written")
    checkpoint = Checkpoint.open(model)
    config = checkpoint.config
    placements = Strategy.parse(strategy or f"cpu {_stored_precision(checkpoint)}").place(config)
    if formats := {p.weight_format for p in placements} - {"dense"}:
        raise StrategyError(f"strategy: {strategy}: {formats.pop()} weights cannot be packed yet; use bf16 or fp16")
    tensors = config.tensor_shapes()
    dtypes = {name: placed_dtype(placements[layer_of(name, config.n_layer)], s) for name, s in tensors.items()}
    forms = {name: form_of(name, shape) for name, shape in tensors.items()}
    words = {dtype: word for word, dtype in DTYPES.items()}
    matrices = {n: PackedMatrix(s, forms[n], words[dtypes[n]]) for n, s in tensors.items() if len(s) == 2}
    shapes = {
        f"{name}.{forms[name]}" if name in matrices else name: (
            dtypes[name],
            arranged_shape(forms[name], shape, dtypes[name]),
        )
        for name, shape in tensors.items()
    }

    def arranged() -> Iterator[Tensor]:
        done = 0
        for name, shape in tensors.items():
            yield converted(checkpoint, name, forms[name], dtypes[name])
            done += math.prod(shape)
            if progress:
                progress(done, config.n_params)

    packing = Packing(checkpoint.fingerprint(), config.settings(), matrices)
    pack_tensors(output, packing, shapes, arranged())
    return packing


def _stored_precision(checkpoint: Checkpoint) -> str:
    stored = checkpoint.read("head.weight").dtype
    return next((word for word, dtype in DTYPES.items() if dtype == stored), "fp32")  # float64 has no kernels
