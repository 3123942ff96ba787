"""The device of one layer, and the number formats of its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from rwkv_engine.core.config import Role, TensorSpec
from rwkv_engine.core.weight_format import FORMATS, FP32, WeightFormat, float_format


@dataclass(frozen=True)
class Placement:
    """The device and number formats of one layer, or of the output LayerNorm with the head.

    Attributes:
        device: the device's name in torch, or "dml".
        dtype: the dtype of unquantised matrices, and of the embedding, which is never quantised.
        weight_format: the format of the matrices: "dense" (unquantised), "i8" or "i4".
        resident: False if its matrices stay in main memory and are streamed to the device when needed.
    """

    device: str
    dtype: torch.dtype
    weight_format: str = "dense"
    resident: bool = True

    def format_of(self, role: Role) -> WeightFormat:
        """The format of the tensors with this role.

        Vectors are always float32: they are small, and exponentials and LayerNorms need their precision.
        """
        if role is Role.VECTOR:
            return FP32
        is_dense = self.weight_format == "dense" or role not in (Role.MATRIX, Role.SPARSE_MATRIX)
        return float_format(self.dtype) if is_dense else FORMATS[self.weight_format]

    def nbytes(self, specs: Iterable[TensorSpec]) -> int:
        """The bytes of these tensors with their scales, without the padding of matrices to full tiles."""
        return sum(self.format_of(spec.role).nbytes(spec.shape) for spec in specs)
