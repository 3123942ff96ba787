"""Matrices of a model, by how their weights are stored. Activations come and go in float32.

Each multiplies (B, K) rows, one token of each of B sequences, or (B, T, K), many tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rwkv_engine.ops import linear, linear_many, untile
from rwkv_engine.ops.int8 import in_floats
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.ops.linear_many import dense_product


class Dense(nn.Linear):
    """y = x W^T with W row after row, in float32, bfloat16 or float16; for training, and where there are no kernels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        return dense_product(x, self.weight)


class Tiled(nn.Module):
    """The same with W in tiles, see `ops.tiles`."""

    def __init__(self, tiles: Tensor, outputs: int, inputs: int, scales: Tensor | None = None):
        """`tiles`: of W (outputs, inputs); a part of a mapped file, perhaps. `scales`: of int8 ones, see `ops.int8`."""
        super().__init__()
        self.out_features, self.in_features = outputs, inputs
        self.tiles = nn.Parameter(tiles, requires_grad=False)
        self.scales = None if scales is None else nn.Parameter(scales, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), a copy; int8 weights in float32."""
        return in_floats(untile(self.tiles, self.out_features, self.in_features), self.scales)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        # Few tokens of a long text are many: their bits must not depend on where a chunk of it ends.
        few = x.ndim == 2 and len(x) <= MOST_ROWS
        product = linear if few else linear_many
        rows = product(x.reshape(-1, self.in_features), self.tiles, self.out_features, self.scales)
        return rows.view(*x.shape[:-1], self.out_features)


class InputMajor(nn.Module):
    """The same with W^T row after row: what one input adds to the outputs lies together, so inputs can be skipped."""

    def __init__(self, rows: Tensor, scales: Tensor | None = None):
        """`rows`: W^T (inputs, outputs); a part of a mapped file, perhaps. `scales`: of int8 ones, see `ops.int8`."""
        super().__init__()
        self.rows = nn.Parameter(rows, requires_grad=False)
        self.scales = None if scales is None else nn.Parameter(scales, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), a view; int8 weights in float32."""
        return in_floats(self.rows.t(), self.scales)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        inputs, outputs = self.rows.shape
        return linear_many(x.reshape(-1, inputs), self.rows, outputs, self.scales).view(*x.shape[:-1], outputs)


def scales_of(*matrices: Tiled | InputMajor) -> list[Tensor]:
    """As the fused steps take them: of int8 weights, else none."""
    return [matrix.scales for matrix in matrices if matrix.scales is not None]
