"""Reads and converts the tensors that a conversion writes, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.checkpoints.rescaled import divided_note, divisor_exponent, looks_divided
from rwkv_engine.checkpoints.safetensors import Shapes
from rwkv_engine.convert.sizes import check_size
from rwkv_engine.core.dtypes import word_of
from rwkv_engine.core.weight_format import FORMATS
from rwkv_engine.errors import CheckpointError
from rwkv_engine.notices import log
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.progress import Progress
from rwkv_engine.runtime.finite import check_finite

# These are exponentiated; transformers keeps them in float32 whatever dtype the rest has.
KEPT = ("att.time_decay", "att.time_first")
# Rows of an int8 matrix that are converted to floats at a time.
PIECE = 128


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        n_bytes: size of all tensors in bytes.
        dtype: name of the head's dtype.
        tokenizer: for a directory, which tokenizer was written with the weights, or why none was.
        files: for a directory, the names of all files that belong to the model.
    """

    n_bytes: int
    dtype: str
    tokenizer: str = ""
    files: tuple[str, ...] = ()


class Source:
    """The source of a conversion.

    Attributes:
        checkpoint: the opened checkpoint.
        shapes: dtype and shape of every tensor in the new file, by its original name.
    """

    def __init__(self, model: Path, dtype: torch.dtype | None, undo_rescale: bool | None, size: str | None):
        """See `to_hugging_face`.

        Raises:
            CheckpointError: there is no model; it is of another size; its weights look divided and `undo_rescale` is
                None; or `undo_rescale` is True and there is no config.json with the divisor.
        """
        self.checkpoint = Checkpoint.open(model)
        if size:
            check_size(model, self.checkpoint.config, size)
        self._undone = _undone(self.checkpoint, undo_rescale)
        if self.checkpoint.packing and self.checkpoint.packing.is_quantised:
            log.warning(f"{model}: packed, {self.checkpoint.packing}; its quantised weights keep their rounding errors")
        self.shapes: Shapes = {
            name: (self._dtype(name, dtype), spec.file_shape) for name, spec in self.checkpoint.specs.items()
        }

    def tensors(self, progress: Progress | None = None) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its original name, in the order of `shapes`; each is valid until the next is requested.

        Raises:
            CheckpointError: the file is damaged, or holds NaN, infinity or numbers too large for their new dtype.
        """
        done = 0
        for name, (dtype, shape) in self.shapes.items():
            stored, scales = self.checkpoint.read(name), self.checkpoint.read_scales(name)
            exponent = divisor_exponent(name, self._undone)
            values = _widened(stored, scales, dtype) if scales is not None else stored
            if exponent:
                values = values * 2.0**exponent
            check_finite(f"{self.checkpoint.path}: {name}", values, dtype)
            yield name, values.to(dtype).reshape(shape)
            self.checkpoint.release(stored)
            done += stored.numel()
            del stored, scales, values  # before the next ones are made
            if progress:
                progress(done, self.checkpoint.config.n_params)

    @property
    def dtype(self) -> str:
        """Name of the head's dtype in the new file."""
        return word_of(self.shapes["head.weight"][0])

    def converted(self, tokenizer: str = "", files: tuple[str, ...] = ()) -> Converted:
        """The result, after everything is written."""
        n_bytes = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in self.shapes.values())
        return Converted(n_bytes, self.dtype, tokenizer, files)

    def _dtype(self, name: str, wanted: torch.dtype | None) -> torch.dtype:
        packing = self.checkpoint.packing
        if packing is None:
            stored = self.checkpoint.read(name).dtype
        else:
            words = {matrix_name: matrix.dtype for matrix_name, matrix in packing.matrices.items()}
            weights = FORMATS[words.get(name, "fp32")]
            # A quantised matrix takes the dtype of the embedding, which is never quantised.
            stored = weights.storage if weights.is_float else FORMATS[words["emb.weight"]].storage
        return stored if wanted is None or name.endswith(KEPT) else wanted


def _undone(checkpoint: Checkpoint, undo_rescale: bool | None) -> int:
    """The `rescale_every` by which weights are multiplied back; 0 for none."""
    if undo_rescale and checkpoint.rescale_every < 1:
        raise CheckpointError(
            f"{checkpoint.path}: --undo-rescale needs a config.json with a rescale_every above 0, which tells what"
            " transformers divided by; got none"
        )
    if undo_rescale is None and looks_divided(checkpoint):
        raise CheckpointError(f"{divided_note(checkpoint)}, or convert them as they are with --no-undo-rescale")
    return checkpoint.rescale_every if undo_rescale else 0


def _widened(q: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    rows, columns = scales.split(list(q.shape))
    values = torch.empty(q.shape, dtype=dtype)
    for part, room, of_rows in zip(q.split(PIECE), values.split(PIECE), rows.split(PIECE), strict=True):
        room.copy_(in_floats(part, torch.cat([of_rows, columns])))
    return values
