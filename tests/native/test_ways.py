"""Each way to multiply with many rows can be chosen, and takes effect."""

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
    assert run_python(PRODUCT, RWKV_ENGINE_BF16="").stdout == (of_float32 if chosen == "float32" else of_dot)


@pytest.mark.slow
@pytest.mark.parametrize("variable", [ways.BF16, ways.INT8])
def test_amx_is_taken_or_refused(variable, run_python):
    result = run_python(PRODUCT, **{variable: "amx"})
    if cpu_kernels.processor_level() == ways.LEVEL and ways.has_amx():
        assert result.returncode == 0, result.stderr
        assert variable == ways.INT8 or result.stdout == "[32.0]\n"
    else:
        assert f"{variable}: got 'amx', but the" in result.stderr
        assert result.returncode == 1


@pytest.mark.parametrize(
    ("vendor", "has_amx", "level", "bfloat16", "int8"),
    [
        ("AuthenticAMD", False, ways.LEVEL, "dot", "vector"),
        ("GenuineIntel", False, ways.LEVEL, "float32", "vector"),
        ("GenuineIntel", True, ways.LEVEL, "amx", "amx"),
        ("", False, ways.LEVEL, "float32", "vector"),
        ("AuthenticAMD", False, "x86-64-v4", "float32", "vector"),
        ("GenuineIntel", True, "x86-64-v4", "float32", "vector"),
        ("AuthenticAMD", False, None, "float32", "vector"),
    ],
)
def test_the_way_depends_on_the_processor(vendor, has_amx, level, bfloat16, int8, monkeypatch):
    for variable in (ways.BF16, ways.INT8):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(ways, "processor_vendor", lambda: vendor)
    monkeypatch.setattr(ways, "has_amx", lambda: has_amx)
    assert (ways.bfloat16_way(level), ways.int8_way(level)) == (bfloat16, int8)


def test_the_way_that_is_asked_for_is_taken_where_it_exists(monkeypatch):
    monkeypatch.setattr(ways, "has_amx", lambda: True)
    for way in ways.BF16_WAYS:
        monkeypatch.setenv(ways.BF16, way)
        assert ways.bfloat16_way(ways.LEVEL) == way
    for way in ways.INT8_WAYS:
        monkeypatch.setenv(ways.INT8, way)
        assert ways.int8_way(ways.LEVEL) == way
    monkeypatch.setattr(ways, "has_amx", lambda: False)
    monkeypatch.setenv(ways.BF16, "amx")
    for variable, function in ((ways.BF16, ways.bfloat16_way), (ways.INT8, ways.int8_way)):
        with pytest.raises(ExtensionError, match=f"{variable}: got 'amx', but the {ways.LEVEL} kernels have no AMX"):
            function(ways.LEVEL)


def test_without_kernels_no_way_is_reported_that_they_would_take(monkeypatch):
    monkeypatch.setattr(ways, "has_amx", lambda: True)
    monkeypatch.setenv(ways.BF16, "amx")
    monkeypatch.setenv(ways.INT8, "amx")
    assert (ways.bfloat16_way(None), ways.int8_way(None)) == ("float32", "vector")


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        (ways.AMX, "x86_64", [(158, 0x1023, 18)]),
        (ways.AMX - {"amx_bf16"}, "x86_64", []),
        (ways.AMX, "aarch64", []),
    ],
)
def test_amx_needs_all_flags_and_permission(flags, machine, expected, monkeypatch):
    asked = []

    class System:
        def syscall(self, *arguments):
            asked.append(arguments)
            return len(asked) - 1  # only the first time

    monkeypatch.setattr(ways.ctypes, "CDLL", lambda _: System())
    monkeypatch.setattr(ways, "processor_flags", lambda: flags)
    monkeypatch.setattr(ways.platform, "machine", lambda: machine)
    assert ways.has_amx.__wrapped__() == bool(expected)
    assert asked == expected
    assert not ways.has_amx.__wrapped__()


def test_an_unknown_way_is_refused(monkeypatch):
    monkeypatch.setenv(ways.BF16, "fast")
    with pytest.raises(ExtensionError, match="RWKV_ENGINE_BF16: got 'fast', expected float32, dot or amx"):
        ways.bfloat16_way(ways.LEVEL)
    monkeypatch.setenv(ways.INT8, "dot")
    with pytest.raises(ExtensionError, match="RWKV_ENGINE_INT8: got 'dot', expected vector or amx"):
        ways.int8_way(None)


@pytest.mark.slow
@pytest.mark.parametrize("variable", [ways.BF16, ways.INT8])
def test_an_unknown_way_stops_a_program(variable, run_python):
    result = run_python(PRODUCT, **{variable: "fast"})
    assert f"{variable}: got 'fast'" in result.stderr
    assert result.returncode == 1
