"""Where one layer runs, and in which formats its tensors are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from rwkv_engine.core.config import Role, TensorSpec
from rwkv_engine.core.weight_format import FORMATS, FP32, WeightFormat, float_format


@dataclass(frozen=True)
class Placement:
    """Of one layer, or of the output LayerNorm with the head.

    Attributes:
        device: where it runs, a name torch knows (but for dml).
        dtype: of its matrices if they are dense; else of the embedding, which never is quantised.
        weight_format: of its matrices: "dense", "i8" or "i4".
        resident: False if its matrices stay in main memory and are streamed to the device when needed.
    """

    device: str
    dtype: torch.dtype
    weight_format: str = "dense"
    resident: bool = True

    def format_of(self, role: Role) -> WeightFormat:
        """The format of the tensors of a role. Vectors are few, and exponentials and norms are made of them."""
        if role is Role.VECTOR:
            return FP32
        is_dense = self.weight_format == "dense" or role not in (Role.MATRIX, Role.SPARSE_MATRIX)
        return float_format(self.dtype) if is_dense else FORMATS[self.weight_format]

    def nbytes(self, specs: Iterable[TensorSpec]) -> int:
        """Bytes of these tensors, without what fills up a matrix to whole tiles."""
        return sum(self.format_of(spec.role).nbytes(spec.shape) for spec in specs)
