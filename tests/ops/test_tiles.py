"""Tiles: the layout, and products of a few rows with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkv_engine.ops import linear, tile, untile, untile_alike
from rwkv_engine.ops.linear import linear_reference
from rwkv_engine.ops.tiles import tile_reference, tiled_shape, untile_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Outputs and inputs around the edges of tiles, and one of the real sizes.
SIZES = [(1, 1), (16, 32), (17, 33), (15, 31), (40, 100), (2056, 8), (8, 2056), (50, 65), (768, 3072)]


def matrix(n, k, dtype, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tiled(weight):
    tiles = torch.full(tiled_shape(*weight.shape, weight.dtype), torch.nan, dtype=weight.dtype)
    tile(weight, tiles)
    return tiles


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_are_where_the_layout_says(size, dtype):
    weight = matrix(*size, dtype)
    tiles = tiled(weight)
    expected = torch.full_like(tiles, torch.nan)
    tile_reference(weight, expected)
    assert torch.equal(tiles, expected)
    per_group = 4 // weight.element_size()
    rng = np.random.default_rng(0)
    for n, k in zip(rng.integers(0, size[0], 50), rng.integers(0, size[1], 50), strict=True):
        i, r = divmod(int(n), 16)
        j, rest = divmod(int(k), 16 * per_group)
        g, p = divmod(rest, per_group)
        assert tiles[i, j, g, r, p] == weight[n, k]
    assert torch.count_nonzero(tiles) == torch.count_nonzero(weight), "the rest is zeros"
    assert torch.equal(untile(tiles, *size), weight)
    assert torch.equal(untile_reference(tiles, *size), weight)
    assert torch.equal(untile_alike([tiles] * 2, *size), torch.stack([weight] * 2))


def test_a_matrix_that_is_not_contiguous():
    weight = matrix(40, 50, torch.float32).t()
    assert torch.equal(untile(tiled(weight), 50, 40), weight)


def test_tiling_passes_opcheck():
    weight = matrix(20, 40, torch.bfloat16)
    tiles = tiled(weight)
    torch.library.opcheck(torch.ops.rwkv_engine.tile.default, (weight, tiles))
    torch.library.opcheck(torch.ops.rwkv_engine.untile.default, (tiles, 20, 40))
    torch.library.opcheck(torch.ops.rwkv_engine.untile_alike.default, ([tiles, tiles], 20, 40))
    torch.library.opcheck(torch.ops.rwkv_engine.linear.default, (torch.randn(3, 40), tiles, 20))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_linear_against_float64(size, batch, dtype):
    """The error is that of float32 sums over weights that are what they are: below twice that of torch's own."""
    n, k = size
    weight, x = matrix(n, k, dtype), matrix(batch, k, torch.float32, seed=1)
    exact = x.double() @ weight.double().t()
    scale = x.double().abs() @ weight.double().abs().t()

    def error(y):
        return ((y.double() - exact).abs() / scale).max().item()

    reference = max(error(linear_reference(x, tiled(weight), n)), 2.0**-24)
    assert error(linear(x, tiled(weight), n)) < 2 * reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_rows_bits_do_not_depend_on_its_neighbours(dtype):
    weight, x = tiled(matrix(77, 300, dtype)), matrix(16, 300, torch.float32, seed=1)
    together = linear(x, weight, 77)
    for i, row in enumerate(x):
        assert torch.equal(linear(row[None], weight, 77)[0], together[i])
    assert torch.equal(linear(x, weight, 77), together), "the same call twice gives the same bits"


def test_every_float16_is_widened_exactly():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    weight = bits.view(torch.float16)
    weight = weight[weight.isfinite()][:, None].contiguous()
    assert torch.equal(linear(torch.ones(1, 1), tiled(weight), len(weight))[0], weight[:, 0].float())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: linear(x[0], t, 20), r"linear: x: expected shape \(B, K\)"),
        (lambda x, t: linear(x.double(), t, 20), "linear: x: expected float32"),
        (lambda x, t: linear(x[:, :30], t, 20), "linear: tiles: expected 20 x 30 in contiguous tiles"),
        (lambda x, t: linear(x, t, 40), "linear: tiles: expected 40 x 40"),
        (lambda x, t: untile(t, 20, 80), "untile: tiles: expected 20 x 80"),
        (lambda x, t: tile(x, t), "tile: weight: expected BFloat16 on the CPU, as tiles, got Float"),
        (lambda x, t: tile(x.bfloat16(), t), "tile: tiles: expected 3 x 40"),
        (
            lambda x, t: linear(x, t.double(), 20),
            "linear: tiles: expected float32, bfloat16, float16, int8 or uint8 \\(int4\\), got Double",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, message):
    tiles = tiled(matrix(20, 40, torch.bfloat16))
    with pytest.raises(RuntimeError, match=message):
        call(torch.randn(3, 40), tiles)
