"""Parses the maximum size of a weights file, such as 5GB."""

from __future__ import annotations

import re

from rwkv_engine.errors import RequestError

_UNITS = {
    **{"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12},
    **{"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40},
}


def bytes_of(size: int | str) -> int:
    """The number of bytes in "500MB", "0.5GB" or "1GiB". An int is bytes; text without a unit is refused.

    Raises:
        RequestError: it is not such a size, or less than one byte.
    """
    text = f"{size}B" if isinstance(size, int) else str(size).strip().upper()
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?) *([KMGT]I?|)B", text)
    number = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if number < 1:
        raise RequestError(
            f"max_shard_size: got {size!r}, expected a number of bytes, or a size such as 5GB, 500MB or 2GiB"
        )
    return number
