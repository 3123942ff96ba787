"""The choice between ways to compute products with many rows that are not equally fast on every processor.

bfloat16 weights: in float32; by the processor's dot products of bfloat16 pairs ("dot"); or by those of its AMX tiles
("amx"). Dot products do twice as many multiplications as float32 on AMD's processors (Zen 4 and later). Those of Intel
do fewer: 85 GMAC/s on two cores of a Xeon (model 207), where float32 does 141. AMX, which Intel's Xeons have since the
fourth generation, does far more than either. int8 weights: in vectors, or in AMX tiles, with the same bits.

The choice depends on the processor's vendor and on AMX, not on a measurement, so that a machine always computes the
same bits. The environment variables `RWKV_ENGINE_BF16` (float32, dot or amx) and `RWKV_ENGINE_INT8` (vector or amx)
override it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from rwkv_engine.errors import ExtensionError

BF16, INT8 = "RWKV_ENGINE_BF16", "RWKV_ENGINE_INT8"
BF16_WAYS = ("float32", "dot", "amx")  # in the order of Bfloat16Way in kernels/cpu/ways.h
INT8_WAYS = ("vector", "amx")
LEVEL = "x86-64-v4-bf16"  # the kernels that have all ways
AMX = {"amx_tile", "amx_int8", "amx_bf16"}


def bfloat16_way(level: str | None) -> str:
    """How kernels of an instruction set level multiply bfloat16 weights with many rows: one of `BF16_WAYS`.

    Raises:
        ExtensionError: `RWKV_ENGINE_BF16` is neither empty nor one of them, or asks for AMX where there is none.
    """
    wanted = _wanted(BF16, BF16_WAYS, level)
    if level != LEVEL:
        return "float32"
    best = "dot" if processor_vendor() == "AuthenticAMD" else "float32"
    return wanted or ("amx" if has_amx() else best)


def int8_way(level: str | None) -> str:
    """The same for int8 weights: one of `INT8_WAYS`, chosen by `RWKV_ENGINE_INT8`."""
    wanted = _wanted(INT8, INT8_WAYS, level)
    if level != LEVEL:
        return "vector"
    return wanted or ("amx" if has_amx() else "vector")


def _wanted(variable: str, ways: tuple[str, ...], level: str | None) -> str:
    wanted = os.environ.get(variable, "")
    if wanted not in ("", *ways):
        raise ExtensionError(f"{variable}: got {wanted!r}, expected {', '.join(ways[:-1])} or {ways[-1]}")
    if wanted == "amx" and level is not None and not (level == LEVEL and has_amx()):
        raise ExtensionError(f"{variable}: got 'amx', but the {level} kernels have no AMX on this processor; unset it")
    return wanted


def choose(library: Path, level: str | None) -> None:
    """Tells the kernels of a loaded library which ways to take."""
    ways = BF16_WAYS.index(bfloat16_way(level)), int(int8_way(level) == "amx")
    ctypes.CDLL(str(library)).rwkv_engine_use_ways(*ways)


@lru_cache(maxsize=1)
def has_amx() -> bool:
    """Whether the processor has AMX, and Linux permits this process to use it; the first call asks for that."""
    if platform.machine() != "x86_64" or not processor_flags() >= AMX:
        return False
    # Without permission the first use of a tile ends the process.
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def processor_vendor() -> str:
    """The processor's vendor as Linux reports it, such as AuthenticAMD; empty on other systems."""
    return _of_processor("vendor_id")


def processor_flags() -> set[str]:
    """The processor's instruction sets by their names in Linux; empty on other systems."""
    return set(_of_processor("flags").split())


def _of_processor(name: str) -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""
