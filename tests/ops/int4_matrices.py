"""Random int4 matrices in both layouts, with their weights computed from the numbers before they were packed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv_engine.ops.int4 import GROUP, int4_rows_shape, int4_tiles_shape, pack_int4_rows, pack_int4_tiles


@dataclass
class Int4Matrix:
    """A matrix (N, K) with groups along its inputs (for tiles) or along its outputs (for rows of W^T).

    q is in the order of the groups: (N, K) or (K, N); `parameters` are the scale and minimum of each group.
    """

    q: Tensor
    parameters: Tensor
    columns: Tensor
    along_inputs: bool

    @classmethod
    def random(cls, n: int, k: int, form: str, seed: int = 0) -> Int4Matrix:
        """W x is about 1 for x about 1 / columns, which span three orders of magnitude; some groups are constant."""
        generator = torch.Generator().manual_seed(seed)
        along_inputs = form == "tiles"
        rows, width = (n, k) if along_inputs else (k, n)
        q = torch.randint(0, 16, (rows, width), generator=generator, dtype=torch.uint8)
        scales = (torch.rand(rows, -(-width // GROUP), generator=generator) + 0.5) / (7 * math.sqrt(k))
        minima = -8 * scales * (torch.rand(scales.shape, generator=generator) + 0.5)
        scales.view(-1)[::5] = 0
        columns = torch.rand(k, generator=generator).sub(0.5).mul(7).exp()
        return cls(q, torch.stack([scales, minima], -1).half(), columns, along_inputs)

    @property
    def size(self) -> tuple[int, int]:
        """N, K."""
        return tuple(self.q.shape if self.along_inputs else self.q.t().shape)

    @property
    def packed(self) -> Tensor:
        """The matrix as operators take it."""
        shape, pack = (int4_tiles_shape, pack_int4_tiles) if self.along_inputs else (int4_rows_shape, pack_int4_rows)
        packed = torch.full(shape(*self.size), 255, dtype=torch.uint8)
        pack(self.q, self.parameters, packed)
        return packed

    @property
    def exact(self) -> Tensor:
        """W (N, K) float64."""
        s, m = (p.double().repeat_interleave(GROUP, 1)[:, : self.q.shape[1]] for p in self.parameters.unbind(-1))
        weight = s * self.q + m
        return (weight if self.along_inputs else weight.t()) * self.columns
