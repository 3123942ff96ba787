"""int4 weights: integers q from 0 to 15; a scale s and a minimum m for each group of 64; and scales of the columns.

    W[n, k] = (s q[n, k] + m) columns[k]

s and m are float16, `columns` (K,) is float32. There are two layouts, the same for every instruction set level and
device (`csrc/kernels/tiles.h`); both are uint8 tensors, little-endian, padded with zeros.

Tiles, (ceil(N / 16), ceil(K / 64), 9, 16, 4): a group is 64 inputs of one output. Half a kilobyte and 64 bytes hold 64
inputs of 16 outputs: first s and m of each output, then 8 times 4 bytes of each output, with input 8 w + b in the low
half of byte b and input 8 w + b + 4 in its high half.

Rows of W^T, (K, R): a group is 64 outputs of one input. A row has 8 bytes for each 128 outputs, s and m of the first
and of the second 64; zeros up to a multiple of 64 bytes; then 64 bytes for each 128 outputs, 16 lanes of 32 bits, with
output 16 j + l in bits 4 j to 4 j + 3 of lane l.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 64
LARGEST = 15
_ROWS, _WORDS, _LANES = 16, 8, 16


def int4_tiles_shape(outputs: int, inputs: int) -> tuple[int, int, int, int, int]:
    """Shape of a matrix (N, K) in int4 tiles."""
    return -(-outputs // _ROWS), -(-inputs // GROUP), 1 + _WORDS, _ROWS, 4


def int4_rows_shape(outputs: int, inputs: int) -> tuple[int, int]:
    """Shape of the rows of W^T of an int4 matrix (N, K)."""
    pairs = -(-outputs // (2 * GROUP))
    return inputs, _parameter_bytes(pairs) + 64 * pairs


def pack_int4_tiles(q: Tensor, parameters: Tensor, tiles: Tensor) -> None:
    """Writes int4 tiles.

    Args:
        q: (N, K) uint8, at most 15; N may be that of whole blocks of 16 rows.
        parameters: (N, ceil(K / 64), 2) float16, s and m of each group of inputs.
        tiles: the result, of shape `int4_tiles_shape(N, K)`.
    """
    n, k = q.shape
    blocks, groups = tiles.shape[:2]
    q = F.pad(q, (0, groups * GROUP - k, 0, blocks * _ROWS - n))
    halves = q.view(blocks, _ROWS, groups, _WORDS, 2, 4).permute(4, 0, 2, 3, 1, 5)
    tiles[:, :, 1:] = halves[0] | halves[1] << 4
    of_rows = F.pad(parameters, (0, 0, 0, 0, 0, blocks * _ROWS - n)).view(blocks, _ROWS, groups, 2)
    tiles[:, :, 0] = of_rows.transpose(1, 2).contiguous().view(torch.uint8)


def pack_int4_rows(q: Tensor, parameters: Tensor, rows: Tensor) -> None:
    """Writes rows of W^T.

    Args:
        q: W^T (K, N) uint8, at most 15.
        parameters: (K, ceil(N / 64), 2) float16, s and m of each group of outputs.
        rows: the result, of shape `int4_rows_shape(N, K)`.
    """
    k, n = q.shape
    pairs = -(-n // (2 * GROUP))
    halves = F.pad(q, (0, 2 * GROUP * pairs - n)).view(k, pairs, 4, 2, _LANES).permute(3, 0, 1, 4, 2)
    of_pairs = F.pad(parameters, (0, 0, 0, 2 * pairs - parameters.shape[1])).view(k, -1).view(torch.uint8)
    rows.zero_()
    rows[:, : 8 * pairs] = of_pairs
    rows[:, _parameter_bytes(pairs) :] = (halves[0] | halves[1] << 4).reshape(k, -1)


def int4_tiles_in_floats(tiles: Tensor, columns: Tensor, outputs: int) -> Tensor:
    """W (N, K) of these tiles, in the dtype of `columns` (K,): float32, or float64 for tests."""
    blocks, groups = tiles.shape[:2]
    words = tiles[:, :, 1:]
    q = torch.stack([words & LARGEST, words >> 4]).permute(1, 4, 2, 3, 0, 5)
    s, m = tiles[:, :, 0].contiguous().view(torch.float16).transpose(1, 2).to(columns.dtype).split(1, dim=-1)
    weight = q.reshape(blocks, _ROWS, groups, GROUP) * s + m
    return weight.view(blocks * _ROWS, groups * GROUP)[:outputs, : len(columns)] * columns


def int4_rows_in_floats(rows: Tensor, columns: Tensor, outputs: int) -> Tensor:
    """W^T (K, N) of these rows, in the dtype of `columns` (K,): float32, or float64 for tests."""
    k, pairs = len(rows), -(-outputs // (2 * GROUP))
    words = rows[:, _parameter_bytes(pairs) :].view(k, pairs, _LANES, 4)
    q = torch.stack([words & LARGEST, words >> 4]).permute(1, 2, 4, 0, 3)
    parameters = rows[:, : 8 * pairs].contiguous().view(torch.float16).view(k, -1, 2)
    s, m = parameters.to(columns.dtype).split(1, dim=-1)
    weight = q.reshape(k, -1, GROUP) * s + m
    return weight.view(k, -1)[:, :outputs] * columns.unsqueeze(-1)


def int4_parameters(weight: Tensor, outputs: int) -> Tensor:
    """The scales and minima of int4 tiles or rows of W^T, as float16 of any shape; a copy."""
    if weight.ndim == 2:
        return weight[:, : 8 * -(-outputs // (2 * GROUP))].contiguous().view(torch.float16)
    return weight[:, :, 0].contiguous().view(torch.float16)


def _parameter_bytes(pairs: int) -> int:
    """The bytes of the parameters of this many pairs of groups, with their padding."""
    return -(-8 * pairs // 64) * 64
