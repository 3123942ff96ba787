"""What a reader of any format returns: tensors by name, not read yet, and what else the file says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk. `read` returns it, as a view of the mapped file where the format allows.

    A packed file holds a matrix in the layout `form`, in which `read_arranged` returns it, and a quantised one with the
    scales that `read_scales` returns; see `packed`.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    form: str | None = None
    read_arranged: Callable[[], Tensor] | None = None
    read_scales: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Contents:
    """What a file or a directory holds.

    Attributes:
        tensors: by their names in the file; no weights are read yet.
        settings: the object in a directory's config.json.
        metadata: the metadata of a safetensors file.
    """

    tensors: dict[str, StoredTensor]
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def shown(name: object) -> str:
    """A name from a file, which may be anything, made fit for a message of one line."""
    text = str(name)[:100]
    return text if text.isprintable() else repr(text)


def some(names: Iterable[str]) -> str:
    """The first three names, for a message."""
    listed = sorted(names)
    return ", ".join(map(shown, listed[:3])) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
