"""Names of torch dtypes."""

from __future__ import annotations

import torch


def word_of(dtype: torch.dtype | str) -> str:
    """The name of a dtype as in config.json, without `torch.`, for example `bfloat16`; a name is returned unchanged."""
    return str(dtype).removeprefix("torch.")
