"""Checks of the tensors that other programs keep a state in, and copies of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rwkv_engine.errors import RequestError


def as_tensors(layout: str, given: Any, n: int, which: str) -> list[Tensor]:
    """The given objects as n tensors on one device, of any shape and dtype."""
    if isinstance(given, Tensor) or not isinstance(given, Sequence):
        raise RequestError(f"layout {layout}: got {type(given).__name__}, expected a list of {n} tensors ({which})")
    if len(given) != n:
        raise RequestError(f"layout {layout}: got {len(given)} tensors, expected {n} ({which}); another model's state?")
    try:
        tensors = [tensor if isinstance(tensor, Tensor) else torch.as_tensor(tensor) for tensor in given]
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(sorted({type(t).__name__ for t in given}))
        raise RequestError(f"layout {layout}: got {kinds}, expected tensors: {error}") from error
    device = tensors[0].device
    return [tensor if tensor.device == device else tensor.to(device) for tensor in tensors]


def check_shapes(layout: str, tensors: list[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuses tensors of other shapes, and those that are not of a floating-point type."""
    for i, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        if tensor.shape != shape or not tensor.is_floating_point() or 0 in shape:
            got = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
            raise RequestError(
                f"layout {layout}, tensor {i}: got {got}, expected floating-point numbers"
                f" {shape if 0 not in shape else '(B, C, L)'}; is it another model's state?"
            )


def copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy."""
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def positions(position: int | Sequence[int] | Tensor | None, like: Tensor) -> Tensor:
    """The positions of the sequences of `like` (B, ...), int64 (B,)."""
    batch = like.shape[0]
    try:
        given = torch.as_tensor(0 if position is None else position)
        if given.is_floating_point() or given.dtype == torch.bool or given.shape not in ((), (batch,)):
            raise ValueError(f"{given.dtype} {tuple(given.shape)}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"position: got {position!r}, expected an integer, or one for each of {batch} sequences"
        ) from error
    return given.to(like.device, torch.int64).expand(batch).clone()


def require_finite(layout: str, fields: Mapping[str, Tensor]) -> None:
    """Refuses a state with NaN or infinity."""
    # If the minimum and the maximum are finite, all elements are. One `isfinite` for all tensors synchronises with a
    # GPU once.
    ends = torch.stack([end for tensor in fields.values() for end in torch.aminmax(tensor.detach())])
    if not torch.isfinite(ends).all():
        names = ", ".join(name for name, tensor in fields.items() if not torch.isfinite(tensor).all())
        raise RequestError(f"layout {layout}: NaN or infinity in {names}, expected numbers; start from None")
