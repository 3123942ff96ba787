"""Each way to multiply bfloat16 weights with many rows can be chosen, and takes effect."""

from __future__ import annotations

import pytest

from rwkv_engine.errors import ExtensionError
from rwkv_engine.native import cpu_kernels, ways

PRODUCT = """
import torch
from rwkv_engine.ops import linear_many
from rwkv_engine.ops.tiles import tile, tiled_shape
torch.manual_seed(0)
weight = torch.ones(32, 32, dtype=torch.bfloat16)
tiles = torch.empty(tiled_shape(32, 32, torch.bfloat16), dtype=torch.bfloat16)
tile(weight, tiles)
x = torch.full((20, 32), 1 + 2.0**-12)  # bfloat16 rounds it to 1
print(linear_many(x, tiles, 32).unique().tolist())
"""


@pytest.mark.slow
def test_the_way_that_is_chosen_is_taken(run_python):
    of_float32 = f"{[32 * (1 + 2.0**-12)]}\n"
    of_dot = "[32.0]\n" if cpu_kernels.processor_level() == ways.LEVEL else of_float32
    assert run_python(PRODUCT, RWKV_ENGINE_BF16="float32").stdout == of_float32
    assert run_python(PRODUCT, RWKV_ENGINE_BF16="dot").stdout == of_dot
    chosen = ways.bfloat16_way(cpu_kernels.processor_level())
    assert run_python(PRODUCT, RWKV_ENGINE_BF16="").stdout == {"dot": of_dot, "float32": of_float32}[chosen]


@pytest.mark.parametrize(
    ("vendor", "level", "way"),
    [
        ("AuthenticAMD", ways.LEVEL, "dot"),
        ("GenuineIntel", ways.LEVEL, "float32"),
        ("", ways.LEVEL, "float32"),
        ("AuthenticAMD", "x86-64-v4", "float32"),
        ("AuthenticAMD", None, "float32"),
    ],
)
def test_the_way_depends_on_the_vendor(vendor, level, way, monkeypatch):
    monkeypatch.delenv(ways.VARIABLE, raising=False)
    monkeypatch.setattr(ways, "processor_vendor", lambda: vendor)
    assert ways.bfloat16_way(level) == way


def test_an_unknown_way_is_refused(monkeypatch):
    monkeypatch.setenv(ways.VARIABLE, "amx")
    with pytest.raises(ExtensionError, match="RWKV_ENGINE_BF16: got 'amx', expected dot or float32"):
        ways.bfloat16_way(ways.LEVEL)


@pytest.mark.slow
def test_an_unknown_way_stops_a_program(run_python):
    result = run_python(PRODUCT, RWKV_ENGINE_BF16="amx")
    assert "RWKV_ENGINE_BF16: got 'amx'" in result.stderr
    assert result.returncode == 1
