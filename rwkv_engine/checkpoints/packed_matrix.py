"""Reads and checks one matrix of a packed file, see `packed`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rwkv_engine.checkpoints.contents import StoredTensor, shown
from rwkv_engine.core.weight_format import FORMATS, I4, I8
from rwkv_engine.errors import CheckpointError
from rwkv_engine.ops.in_floats import rows_in_floats, tiles_in_floats
from rwkv_engine.ops.int4 import int4_parameters, int4_rows_shape, int4_tiles_shape


@dataclass(frozen=True)
class PackedMatrix:
    """One matrix: `shape` is (N, K), `form` one of `packed.AXES`, `dtype` the name of a `WeightFormat`."""

    shape: tuple[int, ...]
    form: str
    dtype: str


def stored_matrix(
    what: str, matrix: PackedMatrix, axes: str, is_known: bool, stored: StoredTensor, scales: StoredTensor | None
) -> StoredTensor:
    """A matrix as any other tensor of a checkpoint; nothing is read yet.

    Args:
        what: the file and the matrix, for messages.
        matrix: what the metadata say about it.
        axes: which dimensions of the stored tensor make up n and which k.
        is_known: whether this version knows the layout; otherwise a matrix can only be converted.
        stored: the tensor in the file.
        scales: its scales in the file.

    Raises:
        CheckpointError: the shapes do not belong together, or the layout of an int4 matrix is unknown.
    """
    weights = FORMATS[matrix.dtype]
    if weights == I4:
        _check_int4(what, matrix, is_known, stored)
    elif not _fits(stored.shape, axes, matrix.shape):
        raise CheckpointError(
            f"{what}: {shown(matrix.form)} of shape {shown(stored.shape)} cannot hold {shown(matrix.shape)}; pack it"
            " again"
        )
    whole = partial(_checked, what, stored, weights.storage)
    read_scales = _scales(what, scales, weights.name, weights.n_scales(matrix.shape)) if weights.scaled_axes else None
    if weights == I4:
        assert read_scales is not None
        whole = partial(_finite, what, whole, matrix.shape[0])
        plain = partial(_in_floats, whole, read_scales, matrix.shape)
        return StoredTensor(matrix.shape, plain, matrix.form, whole, read_scales)
    plain = partial(_plain, whole, axes, matrix.shape)
    form = matrix.form if is_known else None
    return StoredTensor(matrix.shape, plain, form, whole, read_scales, read_scales)


def _check_int4(what: str, matrix: PackedMatrix, is_known: bool, stored: StoredTensor) -> None:
    shapes = {"tiles": int4_tiles_shape, "input_major": int4_rows_shape}
    if not is_known or matrix.form not in shapes:
        raise CheckpointError(
            f"{what}: int4 in a layout that this version does not know; upgrade rwkv_engine, or quantise the model"
            " again"
        )
    n, k = matrix.shape
    if n < 1 or k < 1 or stored.shape != shapes[matrix.form](n, k):
        raise CheckpointError(
            f"{what}: int4 {matrix.form} of shape {shown(stored.shape)} cannot hold {shown(matrix.shape)}; quantise the"
            " model again"
        )


def _fits(got: tuple[int, ...], axes: str, shape: tuple[int, ...]) -> bool:
    """Whether a stored tensor of shape `got` can hold a matrix of `shape`, possibly padded in both dimensions."""
    if len(got) != len(axes) or set(axes) != {"n", "k"}:
        return False
    return all(0 < size <= _extent(got, axes, axis) for axis, size in zip("nk", shape, strict=True))


def _extent(shape: tuple[int, ...], axes: str, axis: str) -> int:
    return math.prod(size for size, its in zip(shape, axes, strict=True) if its == axis)


def _checked(what: str, stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    tensor = stored.read()
    if tensor.dtype != dtype:
        raise CheckpointError(f"{what}: declared as {dtype}, stored as {tensor.dtype}; pack it again")
    return tensor


def _scales(what: str, stored: StoredTensor | None, dtype: str, size: int) -> Callable[[], Tensor]:
    """A function that reads and checks the scales of a quantised matrix."""
    if stored is None or stored.shape != (size,):
        kind = "int8" if dtype == I8.name else "int4"
        got = "no scales" if stored is None else f"scales of shape {shown(stored.shape)}"
        raise CheckpointError(f"{what}: {kind} with {got}, expected ({size},); pack it again")

    def read() -> Tensor:
        scales = _checked(f"{what}.scales", stored, torch.float32)
        if not (scales.isfinite() & (scales > 0)).all():  # a NaN would show in a single output only, a zero not at all
            raise CheckpointError(
                f"{what}: scales that are not positive and finite: the file is damaged; quantise the model again"
            )
        return scales

    return read


def _finite(what: str, whole: Callable[[], Tensor], outputs: int) -> Tensor:
    """The int4 matrix as it is stored, if its scales and minima are finite."""
    tensor = whole()
    if not int4_parameters(tensor, outputs).isfinite().all():  # a NaN would show in a single output only
        raise CheckpointError(
            f"{what}: scales or minima that are not finite: the file is damaged; quantise the model again"
        )
    return tensor


def _in_floats(whole: Callable[[], Tensor], scales: Callable[[], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The row-major int4 matrix in float32, a copy."""
    (outputs, inputs), tensor, columns = shape, whole(), scales()
    if tensor.ndim == 2:
        return rows_in_floats(tensor, outputs, columns).contiguous()
    return tiles_in_floats(tensor, outputs, inputs, columns)


def _plain(whole: Callable[[], Tensor], axes: str, shape: tuple[int, ...]) -> Tensor:
    """The row-major matrix; a copy if its axes are split, as in tiles."""
    tensor = whole()
    order = sorted(range(len(axes)), key=lambda i: axes[i] != "n")  # the dimensions of n, then those of k
    rows = tensor.permute(order).reshape(_extent(tuple(tensor.shape), axes, "n"), -1)
    return rows[: shape[0], : shape[1]]
