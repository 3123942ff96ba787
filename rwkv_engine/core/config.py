"""The sizes of a model, and the tensors and state fields that follow from them.

Each RWKV version is one subclass of `ModelConfig`. It describes every tensor (`TensorSpec`) and every field of the
recurrent state (`StateField`). Loading, packing, quantising, placing and saving use only these descriptions, so they
do not depend on the version.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from typing_extensions import Self

from rwkv_engine.errors import CheckpointError


class Role(Enum):
    """How a model uses a tensor. The role determines the tensor's number format and its memory layout (its form)."""

    VECTOR = "vector"  # an operand of element-wise operations, of any number of axes; float32 in every strategy
    MATRIX = "matrix"  # W (N, K) of a product y = x W^T; stored in tiles, quantised if the strategy says so
    SPARSE_MATRIX = "sparse matrix"  # as MATRIX, for an x of mostly zeros; input-major, so that zeros are skipped
    LOW_RANK = "low rank"  # a factor of a low-rank product; small, so it is row-major and never quantised
    EMBEDDING = "embedding"  # (V, C), a lookup table; row-major and never quantised


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint.

    Attributes:
        shape: its shape in memory.
        role: its role, which determines its number format and memory layout.
        layer: the index of the layer that uses it; n_layer stands for the output LayerNorm and the head. The embedding
            belongs to layer 0.
        file_shape: its shape in the files that training programs write; by default `shape`.
    """

    shape: tuple[int, ...]
    role: Role
    layer: int
    file_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "file_shape", self.file_shape or self.shape)


@dataclass(frozen=True)
class StateField:
    """One field of the recurrent state, which has a float32 tensor of this shape for each layer of each sequence.

    Attributes:
        name: the field's key in `State.fields`.
        shape: the shape for one layer of one sequence.
        empty: the value of every element before the first token.
    """

    name: str
    shape: tuple[int, ...]
    empty: float = 0.0


def read_sizes(
    shapes: Mapping[str, tuple[int, ...]],
    settings: Mapping[str, Any],
    kind: str,
    matrices: Sequence[str],
    per_layer: int,
    epsilon: str,
) -> tuple[int, list[tuple[int, int]], float]:
    """What every version reads from a checkpoint, see `ModelConfig.of`.

    Args:
        shapes: the shape of each tensor by its original name.
        settings: the content of config.json.
        kind: the version's name, for messages.
        matrices: the names of matrices whose shapes determine the sizes.
        per_layer: the number of tensors of a layer; some layers may have more.
        epsilon: the name in `settings` of the epsilon of LayerNorm.

    Returns:
        The number of layers, the shapes of the matrices, and the epsilon.

    Raises:
        CheckpointError: a matrix is missing, there are too few tensors, or the epsilon is not a small positive number.
    """
    for name in matrices:
        if len(shapes.get(name, ())) != 2:
            got = f"shape {shapes[name]}" if name in shapes else f"{len(shapes)} other tensors"
            raise CheckpointError(f"not {kind} checkpoint: expected a matrix {name}, got {got}")
    n_layer = len({found[1] for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))})
    if n_layer * per_layer > len(shapes):  # listing all that is missing could take gigabytes
        raise CheckpointError(
            f"tensors are missing: {len(shapes)} are too few for {n_layer} layers; download or export it again"
        )
    eps = settings.get(epsilon, 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(f"its config's {epsilon}: got {eps!r:.100}, expected a small positive number")
    return n_layer, [(shapes[name][0], shapes[name][1]) for name in matrices], eps


class ModelConfig(ABC):
    """Sizes of a model, read from its tensors' shapes. Subclasses are frozen dataclasses, one for each RWKV version.

    For compatibility with release 0.2, calling `ModelConfig(...)` creates the config of an RWKV-4.

    Attributes:
        version: the RWKV generation.
        renames: pairs (original, Hugging Face) of parts of tensor names; replaced in this order.
        prefix: the prefix of all Hugging Face names except the head's.
        unused: original names of tensors that a file may contain and the model does not use.
        n_layer: number of blocks, L.
        n_embd: width of the residual stream, C.
        n_att: width of time mixing's keys, values and receptance, A; usually C.
        n_ffn: width of channel mixing's key, F.
        n_vocab: rows of the embedding and of the head, V.
        layer_norm_eps: epsilon of every LayerNorm except the last, which always uses 1e-5.
    """

    version: ClassVar[int]
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    prefix: ClassVar[str] = ""
    unused: ClassVar[frozenset[str]] = frozenset()
    _default: ClassVar[type[ModelConfig]]

    n_layer: int
    n_embd: int
    n_att: int
    n_ffn: int
    n_vocab: int
    layer_norm_eps: float

    def __init_subclass__(cls, default: bool = False) -> None:
        super().__init_subclass__()
        if default:
            ModelConfig._default = cls

    def __new__(cls, *_: Any, **__: Any) -> Self:  # noqa: D102
        return super().__new__(ModelConfig._default if cls is ModelConfig else cls)  # type: ignore[return-value]

    @classmethod
    @abstractmethod
    def matches(cls, names: Collection[str]) -> bool:
        """Whether a checkpoint with tensors of these original names belongs to this version."""

    @classmethod
    @abstractmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> Self:
        """The sizes of a checkpoint.

        Args:
            shapes: the shape of each tensor by its original name; the caller checks whether they are consistent.
            settings: the content of a Hugging Face config.json; empty if there is none.

        Raises:
            CheckpointError: the tensors that determine the sizes are missing. The caller adds the file's name.
        """

    @abstractmethod
    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor of a checkpoint by its original name, in the order of the published files."""

    @abstractmethod
    def state_fields(self) -> tuple[StateField, ...]:
        """The fields of the recurrent state."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The same sizes under the names of a Hugging Face config.json."""

    @abstractmethod
    def identity(self) -> str:
        """A text with all sizes, which fingerprints hash. It must never change: saved states contain fingerprints."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Every size by its name, for reports."""

    @property
    @abstractmethod
    def widths(self) -> str:
        """The widths of a layer in words, for reports."""

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape in memory of every tensor, by its original name."""
        return {name: spec.shape for name, spec in self.tensors().items()}

    @property
    def n_params(self) -> int:
        """The number of parameters, including the embedding and the head."""
        return sum(math.prod(spec.shape) for spec in self.tensors().values())

    @classmethod
    def to_hugging_face(cls, name: str) -> str:
        """The Hugging Face name of a tensor, given its original name."""
        renamed = name
        for original, new in cls.renames:
            renamed = renamed.replace(original, new)
        return renamed if name.startswith("head.") else cls.prefix + renamed

    @classmethod
    def transposes(cls, name: str) -> bool:
        """Whether files with Hugging Face names have the transpose of the tensor of this original name."""
        return False

    @classmethod
    def hugging_face_shape(cls, name: str, spec: TensorSpec) -> tuple[int, ...]:
        """The shape that a tensor has in files with Hugging Face names, given its original name."""
        return spec.file_shape

    @classmethod
    def to_original(cls, name: str) -> str:
        """The inverse of `to_hugging_face`; the prefix may be missing. An original name is returned unchanged."""
        name = name.removeprefix(cls.prefix)
        for original, renamed in cls.renames:
            name = name.replace(renamed, original)
        return name
