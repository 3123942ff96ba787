"""The memory layouts (forms) in which kernels read tensors; placed models hold and packed files store them so.

`tiles`: see `ops.tiles`. `input_major`: W^T row-major, for kernels that skip inputs. `rows`: row-major, as in the
checkpoint. int8 matrices also have scales, see `ops.int8`, which are the same in every form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from rwkv_engine.core.config import Role
from rwkv_engine.core.weight_format import I8, WeightFormat
from rwkv_engine.models.int8 import quantized
from rwkv_engine.ops import tile
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.tiles import ROWS, tiled_shape
from rwkv_engine.storage import huge_pages

# Quantises a matrix (N, K) to a format that is not a float: returns the integers (N, K) and their scales (N + K,).
QUANTISERS: dict[WeightFormat, Callable[[Tensor], tuple[Tensor, Tensor]]] = {I8: quantized}
# Rows that are tiled at a time, so that loading needs no converted copy of a whole matrix.
TILED = 16 * ROWS


class Arranged(NamedTuple):
    """A tensor in its form, and the scales (N + K,) float32 of an int8 matrix."""

    values: Tensor
    scales: Tensor | None = None


def form_of(role: Role) -> str:
    """The form in which kernels read the tensors of a role."""
    return {Role.MATRIX: "tiles", Role.SPARSE_MATRIX: "input_major"}.get(role, "rows")


def arranged_shape(form: str, shape: tuple[int, ...], weights: WeightFormat) -> tuple[int, ...]:
    """The shape of the tensor that holds weights of `shape` in this form and format."""
    if form == "tiles":
        outputs, inputs = shape
        return tiled_shape(outputs, inputs, weights.storage)
    return shape[::-1] if form == "input_major" else shape


def arrange(stored: Tensor, form: str, weights: WeightFormat, scales: Tensor | None = None) -> Arranged:
    """Copies a tensor into a form and number format.

    It copies even if nothing changes, because the file may be truncated while the model runs.

    Args:
        stored: the tensor, row-major; quantised if `scales` is given.
        form: a form that `form_of` returns.
        weights: the number format. If it is not a float, the tensor is quantised; one that is quantised already is
            copied unchanged.
        scales: the scales of `stored`.
    """
    if weights.is_float:
        stored, scales = in_floats(stored, scales), None
    else:
        stored, scales = QUANTISERS[weights](stored) if scales is None else (stored, scales.clone())
    shape = arranged_shape(form, tuple(stored.shape), weights)
    arranged = huge_pages.empty(shape, weights.storage, stored.device)
    if form == "tiles":
        for part, room in zip(stored.split(TILED), arranged.split(TILED // ROWS), strict=True):
            tile(part.to(weights.storage), room)
    else:
        arranged.copy_(stored.t() if form == "input_major" else stored)
    return Arranged(arranged, scales)
