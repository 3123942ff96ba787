"""Names of torch dtypes."""

from __future__ import annotations

import torch


def word_of(dtype: torch.dtype | str) -> str:
    """The name of a dtype without `torch.`, as config.json has it: `bfloat16`; the name itself may be given too."""
    return str(dtype).removeprefix("torch.")
