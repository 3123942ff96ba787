"""Converts any checkpoint to a raw `.pth`, the format in which RWKV-4 models are published."""

from __future__ import annotations

from pathlib import Path

import torch

from rwkv_engine.checkpoints.memory import conversion_memory_reported
from rwkv_engine.checkpoints.pth import write_pth
from rwkv_engine.convert.source import Converted, Source
from rwkv_engine.errors import CheckpointError
from rwkv_engine.progress import Progress
from rwkv_engine.storage.atomic import file_problem


def to_pth(
    model: str | Path,
    output: str | Path,
    progress: Progress | None = None,
    *,
    dtype: torch.dtype | None = None,
    undo_rescale: bool | None = None,
    size: str | None = None,
) -> Converted:
    """Writes a `.pth`, completely or not at all; holds one tensor at a time.

    Args:
        model: path of a checkpoint, see `Checkpoint`.
        output: the file; a regular file of that name is replaced.
        progress: called after each tensor with the parameters written so far and in all.
        dtype: as for `to_hugging_face`.
        undo_rescale: as for `to_hugging_face`.
        size: as for `to_hugging_face`.

    Returns:
        The size and dtype of what was written.

    Raises:
        CheckpointError: as for `to_hugging_face`; or the name of `output` does not end in .pth.
        OutOfMemoryError: a tensor does not fit into memory.
    """
    model, output = Path(model), Path(output)
    if output.suffix != ".pth":
        raise CheckpointError(f"{output}: expected a name that ends in .pth")
    if problem := file_problem(output):
        raise CheckpointError(f"{output}: {problem}")
    source = Source(model, dtype, undo_rescale, size)
    with conversion_memory_reported(model):
        write_pth(output, source.shapes, source.tensors(progress))
    return source.converted()
