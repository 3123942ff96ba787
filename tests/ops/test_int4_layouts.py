"""The layouts of int4 weights: where each number is, and back to floats."""

from __future__ import annotations

import pytest
import torch
from ops.int4_matrices import Int4Matrix

from rwkv_engine.ops.in_floats import rows_in_floats, tiles_in_floats
from rwkv_engine.ops.int4 import int4_parameters

SIZES = [(1, 1), (16, 64), (17, 65), (15, 63), (40, 300), (8, 2056), (129, 33), (300, 40), (1100, 77)]  # N, K


def half(parameters: torch.Tensor) -> bytes:
    return parameters.contiguous().numpy().tobytes()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_lie_where_the_layout_says(size):
    n, k = size
    matrix = Int4Matrix.random(n, k, "tiles")
    tiles = matrix.packed
    assert tuple(tiles.shape) == (-(-n // 16), -(-k // 64), 9, 16, 4)
    for output, group in {(0, 0), (n - 1, 0), (n // 2, -(-k // 64) - 1), (n - 1, -(-k // 64) - 1)}:
        tile = tiles[output // 16, group]
        assert tile[0, output % 16].numpy().tobytes() == half(matrix.parameters[output, group])
        for i in range(64):
            byte = int(tile[1 + i // 8, output % 16, i % 4])
            got, at = byte >> 4 if i % 8 >= 4 else byte & 15, 64 * group + i
            assert got == (int(matrix.q[output, at]) if at < k else 0), (output, at)
    missing = tiles[-1, :, :, n % 16 :] if n % 16 else tiles[:0]
    assert not missing.any(), "rows beyond the last"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rows_lie_where_the_layout_says(size):
    n, k = size
    matrix = Int4Matrix.random(n, k, "input_major")
    rows, pairs = matrix.packed, -(-n // 128)
    first = -(-8 * pairs // 64) * 64
    assert tuple(rows.shape) == (k, first + 64 * pairs)
    for at in {0, k // 2, k - 1}:
        row = rows[at]
        assert row[: 8 * pairs].numpy().tobytes() == half(matrix.parameters[at]).ljust(8 * pairs, b"\0")
        assert not row[8 * pairs : first].any()
        lanes = torch.from_numpy(row[first:].numpy().view("<u4").astype("int64")).view(pairs, 16)
        for output in range(128 * pairs):
            g, j, lane = output // 128, output % 128 // 16, output % 16
            got = int(lanes[g, lane]) >> 4 * j & 15
            assert got == (int(matrix.q[at, output]) if output < n else 0), (at, output)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_back_to_floats(size):
    """Exactly in float64; in float32 with the errors of an addition and a product."""
    for form in ("tiles", "input_major"):
        matrix = Int4Matrix.random(*size, form)
        packed, columns = matrix.packed, matrix.columns
        for dtype, rounding in ((torch.float64, 0.0), (torch.float32, 2.0**-23)):
            scales = columns.to(dtype)
            got = tiles_in_floats(packed, *size, scales) if form == "tiles" else rows_in_floats(packed, size[0], scales)
            largest = matrix.exact.abs() + 32 * matrix.parameters.double().abs().max() * columns
            assert got.dtype == dtype
            assert ((got - matrix.exact).abs() <= rounding * largest).all()


def test_parameters_are_found_in_both_layouts():
    for form in ("tiles", "input_major"):
        matrix = Int4Matrix.random(40, 300, form)
        found = int4_parameters(matrix.packed, 40)
        assert sorted(found.view(torch.int16)[found != 0].tolist()) == sorted(
            matrix.parameters.view(torch.int16)[matrix.parameters != 0].tolist()
        )


@pytest.mark.parametrize("scales", [None, torch.ones(39), torch.ones(340)], ids=["none", "too few", "as int8"])
def test_scales_that_do_not_fit_are_refused(scales):
    with pytest.raises(RuntimeError, match="int4 weights need the scales of their 40 columns"):
        tiles_in_floats(Int4Matrix.random(300, 40, "tiles").packed, 300, 40, scales)
    with pytest.raises(RuntimeError, match="int4 weights need the scales of their 40 columns"):
        rows_in_floats(Int4Matrix.random(300, 40, "input_major").packed, 300, scales)
