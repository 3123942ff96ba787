"""What the reader of each file format returns: the tensors by name, not read yet, and the metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk. `read` returns it row-major, as a view of the mapped file where the format allows.

    For a tensor of a packed file, `form` is its memory layout and `read_arranged` returns it in that layout; see
    `packed`. A quantised matrix has scales: `arranged_scales` returns those of `read_arranged`, `read_scales` those of
    `read`, which has none where `read` converts the matrix to floats.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    form: str | None = None
    read_arranged: Callable[[], Tensor] | None = None
    arranged_scales: Callable[[], Tensor] | None = None
    read_scales: Callable[[], Tensor] | None = None

    def transposed(self) -> StoredTensor:
        """The transpose of a matrix, which `read` returns as a view."""
        return replace(self, shape=self.shape[::-1], read=lambda: self.read().t())


@dataclass(frozen=True)
class Contents:
    """The content of a file or a directory.

    Attributes:
        tensors: the tensors by their names in the file; no weights are read yet.
        settings: the content of a directory's config.json.
        metadata: the metadata of a safetensors file.
    """

    tensors: dict[str, StoredTensor]
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def shown(name: object) -> str:
    """A value from a file, shortened and escaped so that it fits into a message of one line."""
    text = str(name)[:100]
    return text if text.isprintable() else repr(text)


def some(names: Iterable[str]) -> str:
    """The first three names in alphabetical order, and the number of the others, for a message."""
    listed = sorted(names)
    return ", ".join(map(shown, listed[:3])) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
