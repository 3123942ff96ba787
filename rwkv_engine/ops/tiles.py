"""tile, untile: convert a matrix to the memory layout of the kernels, and back.

The layout, version 1, is the same for every instruction set level and device (`csrc/kernels/tiles.h`). The N outputs
are divided into blocks of 16 rows, and a block into tiles of 64 bytes per row along the inputs. A tile consists of 16
groups; each has the next 4 bytes, which are P = 4 / itemsize inputs, of all 16 rows. W[16 i + r, 16 P j + P g + p] is
at [i, j, g, r, p]. N and K are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define

TILE_SCHEMA = "tile(Tensor weight, Tensor(a!) tiles) -> ()"
UNTILE_SCHEMA = "untile(Tensor tiles, int outputs, int inputs) -> Tensor"
UNTILE_ALIKE_SCHEMA = "untile_alike(Tensor[] tiles, int outputs, int inputs) -> Tensor"
ROWS = GROUPS = 16


def tile(weight: Tensor, tiles: Tensor) -> None:
    """Writes a matrix (N, K), float32, bfloat16, float16 or int8, to `tiles`, of shape `tiled_shape` and its dtype."""
    cpu_kernels.ensure_loaded()
    torch.ops.rwkv_engine.tile(weight, tiles)


def tiled_shape(outputs: int, inputs: int, dtype: torch.dtype) -> tuple[int, int, int, int, int]:
    """Shape of a matrix in tiles: (ceil(N / 16), ceil(K / 16 P), 16, 16, P)."""
    per_group = 4 // dtype.itemsize
    return -(-outputs // ROWS), -(-inputs // (GROUPS * per_group)), GROUPS, ROWS, per_group


def untile(tiles: Tensor, outputs: int, inputs: int) -> Tensor:
    """The row-major matrix (outputs, inputs) of these tiles, a copy."""
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.untile(tiles, outputs, inputs)


def untile_alike(tiles: Sequence[Tensor], outputs: int, inputs: int) -> Tensor:
    """`untile` of up to three matrices of one size and dtype, (n, outputs, inputs); on a GPU by one kernel."""
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.untile_alike(list(tiles), outputs, inputs)


def tile_reference(weight: Tensor, tiles: Tensor) -> None:
    """`tile` in plain torch."""
    n, k = weight.shape
    blocks, per_block, _, _, per_group = tiles.shape
    padded = F.pad(weight, (0, per_block * GROUPS * per_group - k, 0, blocks * ROWS - n))
    tiles.copy_(padded.view(blocks, ROWS, per_block, GROUPS, per_group).permute(0, 2, 3, 1, 4))


def untile_reference(tiles: Tensor, outputs: int, inputs: int) -> Tensor:
    """`untile` in plain torch."""
    blocks, per_block, _, _, per_group = tiles.shape
    rows = tiles.permute(0, 3, 1, 2, 4).reshape(blocks * ROWS, per_block * GROUPS * per_group)
    return rows[:outputs, :inputs].contiguous()


def _untile_fake(tiles: Tensor, outputs: int, inputs: int) -> Tensor:
    return tiles.new_empty(outputs, inputs)


def untile_alike_reference(tiles: Sequence[Tensor], outputs: int, inputs: int) -> Tensor:
    """`untile_alike` by `untile`."""
    return torch.stack([untile(matrix, outputs, inputs) for matrix in tiles])


def _untile_alike_fake(tiles: Sequence[Tensor], outputs: int, inputs: int) -> Tensor:
    return tiles[0].new_empty(len(tiles), outputs, inputs)


define(TILE_SCHEMA, tile_reference, lambda weight, tiles: None)
define(UNTILE_SCHEMA, untile_reference, _untile_fake)
define(UNTILE_ALIKE_SCHEMA, untile_alike_reference, _untile_alike_fake)
