"""What a tokenizer returns: lists or tensors by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rwkv_engine.errors import RequestError


class BatchEncoding(dict[str, Any]):
    """`input_ids` and `attention_mask`, also as attributes; `model.generate(**encoding)` takes them as arguments."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here, expected one of {', '.join(self)}") from None

    def to(self, device: str | int | torch.device, non_blocking: bool = False) -> BatchEncoding:
        """Moves its tensors, in place.

        Args:
            device: what torch takes; a number is that CUDA device.
            non_blocking: as for `Tensor.to`.

        Raises:
            RequestError: no such device here.
        """
        if not isinstance(device, str | int | torch.device):
            raise RequestError(f"to: got {device!r}, expected a device; ids stay integers")
        try:
            moved = {k: v.to(device, non_blocking=non_blocking) for k, v in self.items() if isinstance(v, torch.Tensor)}
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            first = str(error).splitlines()[0]
            raise RequestError(f"to: got {device!r}, which torch cannot use here: {first}") from error
        self.update(moved)
        return self


def in_format(rows: Sequence[list[int]], kind: str | None, name: str) -> Any:
    """Lists of integers as they are, or as int64: kind "pt" gives a tensor, "np" an array, (B, T).

    Raises:
        RequestError: another kind, or rows of different lengths, which make no tensor.
    """
    if kind is None:
        return rows
    if kind not in ("pt", "np"):
        raise RequestError(f"return_tensors: got {kind!r}, expected 'pt' (torch), 'np' (NumPy) or None (lists)")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise RequestError(
            f"{name}: got texts of {min(lengths)} to {max(lengths)} tokens, expected equally many to make a tensor;"
            " give padding=True, or truncation=True with a max_length"
        )
    shape = (len(rows), *lengths)
    return (
        torch.tensor(rows, dtype=torch.int64).view(shape) if kind == "pt" else np.array(rows, np.int64).reshape(shape)
    )
