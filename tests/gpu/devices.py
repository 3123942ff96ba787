"""What tests of a GPU share."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def on(device: str, thing: Any) -> Any:
    """A copy with all tensors on a device; lists and tuples are looked through."""
    if isinstance(thing, Tensor):
        return thing.detach().to(device)
    return type(thing)(on(device, part) for part in thing) if isinstance(thing, list | tuple) else thing
