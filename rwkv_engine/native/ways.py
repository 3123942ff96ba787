"""The choice between ways to compute that all work on a processor, but are not equally fast on every one.

bfloat16 weights times many rows: with the processor's dot products of bfloat16 pairs ("dot"), or widened to float32
("float32"). Dot products do twice as many multiplications as float32 on AMD's processors (Zen 4 and later). Those of
Intel do fewer: 85 GMAC/s on two cores of a Xeon (model 207), where float32 does 141.

The choice depends on the processor's vendor, not on a measurement, so that a machine always computes the same bits.
The environment variable `RWKV_ENGINE_BF16` (dot or float32) overrides it.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from rwkv_engine.errors import ExtensionError

VARIABLE = "RWKV_ENGINE_BF16"
WAYS = ("dot", "float32")
LEVEL = "x86-64-v4-bf16"  # the kernels that have both ways


def bfloat16_way(level: str | None) -> str:
    """How kernels of an instruction set level multiply bfloat16 weights with many rows: one of `WAYS`.

    Raises:
        ExtensionError: `RWKV_ENGINE_BF16` is neither empty nor one of `WAYS`.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", *WAYS):
        raise ExtensionError(f"{VARIABLE}: got {wanted!r}, expected {' or '.join(WAYS)}")
    if level != LEVEL:
        return "float32"
    return wanted or ("dot" if processor_vendor() == "AuthenticAMD" else "float32")


def choose(library: Path, level: str | None) -> None:
    """Tells the kernels of a loaded library which way to take."""
    ctypes.CDLL(str(library)).rwkv_engine_use_bfloat16_dot_products(int(bfloat16_way(level) == "dot"))


def processor_vendor() -> str:
    """The processor's vendor as Linux reports it, such as AuthenticAMD; empty on other systems."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    return ""
