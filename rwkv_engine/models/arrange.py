"""The memory layouts (forms) in which kernels read tensors; placed models hold and packed files store them so.

`tiles`: see `ops.tiles`. `input_major`: W^T row-major, for kernels that skip inputs. `rows`: row-major, as in the
checkpoint. Quantised matrices also have scales, see `ops.int8` and `ops.int4`. int4 has layouts of its own for the
first two.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rwkv_engine.core.config import Role
from rwkv_engine.core.weight_format import I4, I8, WeightFormat
from rwkv_engine.models.int4 import quantized_int4
from rwkv_engine.models.int8 import quantized
from rwkv_engine.ops import tile
from rwkv_engine.ops.int4 import int4_rows_shape, int4_tiles_shape
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.tiles import ROWS, tiled_shape
from rwkv_engine.storage import huge_pages

# Rows that are tiled at a time, so that loading needs no converted copy of a whole matrix.
TILED = 16 * ROWS


class Arranged(NamedTuple):
    """A tensor in its form, and the float32 scales of a quantised matrix, `WeightFormat.n_scales` of them."""

    values: Tensor
    scales: Tensor | None = None


def form_of(role: Role) -> str:
    """The form in which kernels read the tensors of a role."""
    return {Role.MATRIX: "tiles", Role.SPARSE_MATRIX: "input_major"}.get(role, "rows")


def arranged_shape(form: str, shape: tuple[int, ...], weights: WeightFormat) -> tuple[int, ...]:
    """The shape of the tensor that holds weights of `shape` in this form and format."""
    if form == "tiles":
        outputs, inputs = shape
        return int4_tiles_shape(outputs, inputs) if weights == I4 else tiled_shape(outputs, inputs, weights.storage)
    if form == "input_major":
        outputs, inputs = shape
        return int4_rows_shape(outputs, inputs) if weights == I4 else (inputs, outputs)
    return shape


def arrange(
    stored: Tensor, form: str, weights: WeightFormat, scales: Tensor | None = None, moments: Tensor | None = None
) -> Arranged:
    """Copies a tensor into a form and number format.

    It copies even if nothing changes, because the file may be truncated while the model runs.

    Args:
        stored: the tensor, row-major; int8 if `scales` is given, otherwise of any floating-point dtype.
        form: a form that `form_of` returns.
        weights: the number format. int8 weights remain as they are under i8; any other tensor is quantised, if the
            format is not a float.
        scales: the scales of `stored`.
        moments: the second moments (K,) of the inputs of a matrix, for int4; None if they are not known.
    """
    if weights == I4:
        return Arranged(*quantized_int4(in_floats(stored, scales), form, moments))
    if weights == I8:
        stored, scales = quantized(stored) if scales is None else (stored, scales.clone())
    else:
        stored, scales = in_floats(stored, scales), None
    arranged = huge_pages.empty(arranged_shape(form, tuple(stored.shape), weights), weights.storage, stored.device)
    if form == "tiles":
        for part, room in zip(stored.split(TILED), arranged.split(TILED // ROWS), strict=True):
            tile(part.to(weights.storage), room)
    else:
        arranged.copy_(stored.t() if form == "input_major" else stored)
    return Arranged(arranged, scales)
