"""The matrices of a model, one class for each memory layout. Inputs and outputs are float32.

On a GPU, inputs of packed 16-bit matrices may have the dtype of the weights, see `ops.linear_many.mixed_product`.

An input (B, K) is one token of each of B sequences; (B, T, K) is many tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rwkv_engine.ops import linear, linear_many, norm_linear
from rwkv_engine.ops.in_floats import rows_in_floats, tiles_in_floats
from rwkv_engine.ops.linear import MOST_ROWS, MOST_ROWS_ON_CPU
from rwkv_engine.ops.linear_many import dense_product, mixed_product


class Dense(nn.Linear):
    """y = x W^T with W row-major, in float32, bfloat16 or float16; for training, and without compiled kernels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        return dense_product(x, self.weight)


class Tiled(nn.Module):
    """y = x W^T with W in tiles, see `ops.tiles`."""

    def __init__(self, tiles: Tensor, outputs: int, inputs: int, scales: Tensor | None = None):
        """`tiles`: of W (outputs, inputs), perhaps a view of a file; `scales`: of quantised weights."""
        super().__init__()
        self.out_features, self.in_features = outputs, inputs
        self.tiles = nn.Parameter(tiles, requires_grad=False)
        self.scales = None if scales is None else nn.Parameter(scales, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """W (outputs, inputs), a row-major copy; quantised weights are converted to float32."""
        return tiles_in_floats(self.tiles, self.out_features, self.in_features, self.scales)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """x (..., inputs) -> (..., outputs). `weight`: what the attribute gives, if the caller has it already."""
        if x.dtype == self.tiles.dtype != torch.float32:
            return mixed_product(x, self.weight if weight is None else weight)
        # A short chunk (B, T, K) of a long text also counts as many tokens: results must not depend on the chunks.
        few = x.ndim == 2 and len(x) <= (MOST_ROWS_ON_CPU if x.device.type == "cpu" else MOST_ROWS)
        product = linear if few else linear_many
        rows = product(x.reshape(-1, self.in_features), self.tiles, self.out_features, self.scales)
        return rows.view(*x.shape[:-1], self.out_features)

    def after(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """The product with norm(x) for few rows x (B, inputs), without a gradient -> (B, outputs)."""
        return norm_linear(x, norm.weight, norm.bias, norm.eps, self.tiles, self.out_features, self.scales)


class InputMajor(nn.Module):
    """y = x W^T with W^T row-major, so that the weights of one input are contiguous and zero inputs can be skipped."""

    def __init__(self, rows: Tensor, outputs: int, scales: Tensor | None = None):
        """`rows`: W^T (inputs, outputs), perhaps a view of a file; `scales`: of quantised weights."""
        super().__init__()
        self.out_features, self.in_features = outputs, len(rows)
        self.rows = nn.Parameter(rows, requires_grad=False)
        self.scales = None if scales is None else nn.Parameter(scales, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """W (outputs, inputs), a view; quantised weights are converted to a float32 copy."""
        return rows_in_floats(self.rows, self.out_features, self.scales)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        if x.dtype == self.rows.dtype != torch.float32:
            return mixed_product(x, self.weight)
        rows = linear_many(x.reshape(-1, self.in_features), self.rows, self.out_features, self.scales)
        return rows.view(*x.shape[:-1], self.out_features)


def scales_of(*matrices: Tiled | InputMajor) -> list[Tensor | None]:
    """The scales of matrices, as the fused steps take them."""
    return [matrix.scales for matrix in matrices]
