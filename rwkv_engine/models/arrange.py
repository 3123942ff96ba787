"""In which form kernels read a checkpoint's tensors: so a placed model holds them, and a packed file stores them.

`tiles`: see `ops.tiles`. `input_major`: W^T row after row, for kernels that skip inputs. `rows`: as it is. What is
int8 has scales besides, see `ops.int8`, the same in every form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_engine.core.config import Role
from rwkv_engine.core.weight_format import I8, WeightFormat
from rwkv_engine.models.int8 import quantized
from rwkv_engine.ops import tile
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.tiles import ROWS, tiled_shape

# How a matrix (N, K) is rounded to a format that is not a float: its integers, and their scales (N + K,).
QUANTISERS: dict[WeightFormat, Callable[[Tensor], tuple[Tensor, Tensor]]] = {I8: quantized}
# Rows tiled at a time: a converted copy of a whole matrix would be memory that loading does not need.
TILED = 16 * ROWS


class Arranged(NamedTuple):
    """A tensor in its form, and the scales (N + K,) float32 of an int8 matrix."""

    values: Tensor
    scales: Tensor | None = None


def form_of(role: Role) -> str:
    """The form of the tensors of a role where kernels read them."""
    return {Role.MATRIX: "tiles", Role.SPARSE_MATRIX: "input_major"}.get(role, "rows")


def arranged_shape(form: str, shape: tuple[int, ...], weights: WeightFormat) -> tuple[int, ...]:
    """The shape of the tensor that holds weights of `shape` in this form and format."""
    if form == "tiles":
        outputs, inputs = shape
        return tiled_shape(outputs, inputs, weights.storage)
    return shape[::-1] if form == "input_major" else shape


def arrange(stored: Tensor, form: str, weights: WeightFormat, scales: Tensor | None = None) -> Arranged:
    """Copies, even where nothing changes: the file may be replaced or truncated while the model runs.

    Args:
        stored: row after row; quantised if there are `scales`.
        form: as `form_of` tells.
        weights: the format wanted; quantises where it is not a float, but what is quantised already keeps its numbers.
        scales: of `stored`.
    """
    if weights.is_float:
        stored, scales = in_floats(stored, scales), None
    else:
        stored, scales = QUANTISERS[weights](stored) if scales is None else (stored, scales.clone())
    shape = arranged_shape(form, tuple(stored.shape), weights)
    arranged = torch.empty(shape, dtype=weights.storage, device=stored.device)
    if form == "tiles":
        for part, room in zip(stored.split(TILED), arranged.split(TILED // ROWS), strict=True):
            tile(part.to(weights.storage), room)
    else:
        arranged.copy_(stored.t() if form == "input_major" else stored)
    return Arranged(arranged, scales)
