"""In which form kernels read a checkpoint's tensors: so a placed model holds them, and a packed file stores them.

`tiles`: see `ops.tiles`. `input_major`: W^T row after row, for kernels that skip inputs. `rows`: as it is. What is
int8 has scales besides, see `ops.int8`, the same in every form.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_engine.models.int8 import quantized
from rwkv_engine.ops import tile
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.tiles import ROWS, tiled_shape

# Rows tiled at a time: a converted copy of a whole matrix would be memory that loading does not need.
TILED = 16 * ROWS


class Arranged(NamedTuple):
    """A tensor in its form, and the scales (N + K,) float32 of an int8 matrix."""

    values: Tensor
    scales: Tensor | None = None


def form_of(name: str, shape: tuple[int, ...]) -> str:
    """The form of a tensor, by its original name and shape."""
    if len(shape) != 2 or name.startswith("emb."):
        return "rows"
    return "input_major" if name.endswith("ffn.value.weight") else "tiles"


def arranged_shape(form: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """What a tensor of this shape has in this form."""
    if form == "tiles":
        outputs, inputs = shape
        return tiled_shape(outputs, inputs, dtype)
    return shape[::-1] if form == "input_major" else shape


def arrange(stored: Tensor, form: str, dtype: torch.dtype, scales: Tensor | None = None) -> Arranged:
    """Copies, even where nothing changes: the file may be replaced or truncated while the model runs.

    Args:
        stored: row after row; int8 if there are `scales`.
        form: as `form_of` tells.
        dtype: wanted; int8 quantises, but what is int8 already keeps its numbers.
        scales: of `stored`.
    """
    if dtype == torch.int8:
        stored, scales = quantized(stored) if scales is None else (stored, scales.clone())
    else:
        stored, scales = in_floats(stored, scales), None
    arranged = torch.empty(arranged_shape(form, tuple(stored.shape), dtype), dtype=dtype, device=stored.device)
    if form == "tiles":
        for part, room in zip(stored.split(TILED), arranged.split(TILED // ROWS), strict=True):
            tile(part.to(dtype), room)
    else:
        arranged.copy_(stored.t() if form == "input_major" else stored)
    return Arranged(arranged, scales)
