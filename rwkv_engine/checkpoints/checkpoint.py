"""Opens a checkpoint, checks its names and shapes, and reads its tensors one at a time by their original names.

Formats: `.pth` (the zip format is memory-mapped, the legacy one read into memory) and `.safetensors`, both with
original or Hugging Face names, with or without the prefixes that trainers add; Hugging Face directories (`config.json`
with safetensors or `pytorch_model.bin`, in one file or in shards); and packed files (`packed`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_engine.checkpoints.contents import Contents, shown, some
from rwkv_engine.checkpoints.failures import damage_reported
from rwkv_engine.checkpoints.files import read_directory, read_file
from rwkv_engine.checkpoints.names import canonical, stripped
from rwkv_engine.checkpoints.packed import KEY, Packing, unpack
from rwkv_engine.core.architectures import CONFIGS, unsupported_version
from rwkv_engine.core.config import ModelConfig, Role
from rwkv_engine.errors import CheckpointError
from rwkv_engine.storage.mapped import prefer_huge_pages, release_pages

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Checkpoint:
    """An opened checkpoint, whose names and shapes are those of a supported model.

    Attributes:
        path: the file or directory.
        config: the model's sizes, read from the tensors' shapes.
        specs: the model's tensors by their original names, in the order of `ModelConfig.tensors`.
        packing: the metadata of a packed file; None for all other formats.
        rescale_every: for a Hugging Face directory, the number of layers after which transformers halves the residual
            stream; 0 if it does not.
    """

    def __init__(self, path: Path, contents: Contents):
        self.path = path
        self.packing: Packing | None = None
        self.rescale_every = 0
        tensors, settings = contents.tensors, contents.settings
        if KEY in contents.metadata:
            with damage_reported(path):
                self.packing, tensors = unpack(path, tensors, contents.metadata[KEY])
                prefer_huge_pages(next(iter(contents.tensors.values())).read())  # before anything of it is read
            settings = self.packing.config
        version, found = canonical(path, tensors, settings)
        found = {name: tensor for name, tensor in found.items() if name not in version.unused}
        originals = {stripped(name) for name in tensors}
        for name in found:
            if version.transposes(name) and name not in originals:
                found[name] = found[name].transposed()
        self.config = _checked_config(path, version, {name: t.shape for name, t in found.items()}, settings)
        self.specs = self.config.tensors()
        self._tensors = {name: found[name] for name in self.specs}
        if self.packing is None:
            self.rescale_every = _rescale_every(path, contents.settings)

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Opens a file or a directory. Only names and shapes are read, no weights (except from a legacy `.pth`).

        Raises:
            CheckpointError: the path does not exist, is not a checkpoint (the message names the format if it is a known
                one), is damaged or truncated, or is of another architecture; or its names, shapes and settings
                contradict each other.
            OutOfMemoryError: there is not enough memory to map or read it.
        """
        path = Path(path)
        if path.is_dir():
            return cls(path, read_directory(path))
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "no such file or directory"
            raise CheckpointError(f"{path}: {problem}")
        return cls(path, read_file(path))

    @property
    def names(self) -> list[str]:
        """The original names of all tensors, in the order of `specs`."""
        return list(self.specs)

    def read(self, name: str) -> Tensor:
        """Reads a tensor, in its stored dtype, on the CPU. Call `release` once it has been copied.

        It is usually a view of the mapped file, with the shape of its `TensorSpec`. Matrices of a packed file are
        converted to row-major copies: int8 ones stay int8, and `read_scales` returns their scales; int4 ones become
        float32.

        Raises:
            CheckpointError: the tensor's dtype is not a floating-point one, or the file is damaged.
        """
        return self._numbers(name, self._tensors[name].read).reshape(self.specs[name].shape)

    def read_scales(self, name: str) -> Tensor | None:
        """The scales of an int8 matrix (N, K): float32 (N + K,), a view of the file; None for any other tensor.

        The N scales of the rows come first, then the K of the columns: W[n, k] = scales[n] q[n, k] scales[N + k].

        Raises:
            CheckpointError: a scale is not positive and finite, or the file is damaged.
        """
        return self._scales(self._tensors[name].read_scales)

    def read_arranged_scales(self, name: str) -> Tensor | None:
        """The scales that belong to `read_arranged`: float32, a view of the file; None for a matrix of floats.

        Those of an int4 matrix (N, K) are the K of the columns, see `ops.int4`; those of an int8 matrix are as for
        `read_scales`.

        Raises:
            CheckpointError: as for `read_scales`.
        """
        return self._scales(self._tensors[name].arranged_scales)

    def _scales(self, read: Callable[[], Tensor] | None) -> Tensor | None:
        if read is None:
            return None
        with damage_reported(self.path):
            return read()

    def read_arranged(self, name: str, form: str) -> Tensor | None:
        """The tensor in a kernel's memory layout, if a packed file stores it so: a view of the mapped file.

        If another process truncates the file or writes into it while the view is in use, this process crashes or
        computes with the changed weights. Replacing the file by renaming, as `pack` does, and deleting it are safe.

        Args:
            name: the tensor's original name.
            form: one of `packed.AXES`; tiles are those of `packed.LAYOUT`.

        Returns:
            None if the file stores the tensor in another form; `read` returns it then.

        Raises:
            CheckpointError: as for `read`.
        """
        stored = self._tensors[name]
        if stored.read_arranged is None or stored.form != form:
            return None
        return self._numbers(name, stored.read_arranged)

    def _numbers(self, name: str, read: Callable[[], Tensor]) -> Tensor:
        with damage_reported(self.path):
            tensor = read()
        if tensor.dtype not in FLOAT_TYPES and self._tensors[name].arranged_scales is None:
            raise CheckpointError(f"{self.path}: {name}: expected a floating-point tensor, got {tensor.dtype}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{self.path}: {name}: expected a dense tensor on the CPU, got {tensor.layout}, {tensor.device}"
            )
        return tensor.detach()

    @staticmethod
    def release(tensor: Tensor) -> None:
        """Drops a tensor's file pages from memory, so that loading does not keep both the file and the placed weights.

        The tensor stays valid: the pages are read from the file again when needed.
        """
        release_pages(tensor)

    def fingerprint(self) -> str:
        """Identifies the model, independently of the file format: 16 hexadecimal digits.

        It hashes the sizes, all vectors, and the first row of every matrix in float32; that distinguishes trained
        models without reading gigabytes. A packed file keeps the fingerprint of the model it was made from, even if it
        is quantised.
        """
        if self.packing:
            return self.packing.fingerprint
        digest = hashlib.sha256(self.config.identity().encode())
        for name, spec in self.specs.items():
            tensor = self.read(name)
            part = (tensor if spec.role is Role.VECTOR else tensor[0]).float().contiguous()
            digest.update(name.encode())
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()[:16]


def _checked_config(
    path: Path, version: type[ModelConfig], shapes: dict[str, tuple[int, ...]], settings: dict[str, Any]
) -> ModelConfig:
    if unsupported := unsupported_version(shapes):
        what, name = unsupported
        raise CheckpointError(f"{path}: this is {what} (it has {shown(name)}); only plain {_supported()} runs here")
    try:
        config = version.of(shapes, settings)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _check_shapes(path, shapes, config)
    _check_settings(path, settings, config)
    return config


def _supported() -> str:
    return ", ".join(f"RWKV-{config.version}" for config in CONFIGS)


def _check_shapes(path: Path, shapes: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    expected = config.tensors()
    missing, unknown = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    if missing:
        raise CheckpointError(f"{path}: tensors are missing: {some(missing)}; download or export it again")
    if unknown:
        raise CheckpointError(
            f"{path}: tensors RWKV-{config.version} does not have: {some(unknown)}; is it another architecture?"
        )
    for name, spec in expected.items():
        got = shapes[name]
        # Training programs store vectors with further axes of size 1.
        same = _squeezed(got) == _squeezed(spec.shape) if spec.role is Role.VECTOR else got == spec.shape
        if not same or 0 in spec.shape:
            wanted = "sizes > 0" if 0 in spec.shape else spec.shape
            raise CheckpointError(f"{path}: {name}: got shape {got}, expected {wanted}")


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _check_settings(path: Path, settings: dict[str, Any], config: ModelConfig) -> None:
    for key, value in config.settings().items():
        if settings.get(key) is not None and settings[key] != value:
            raise CheckpointError(
                f"{path}: its config says {key} = {shown(repr(settings[key]))}, the tensors say {value!r};"
                " the two do not belong together"
            )


def _rescale_every(path: Path, settings: dict[str, Any]) -> int:
    every = settings.get("rescale_every", 6) if settings.get("model_type") == "rwkv" else 0  # 6 is transformers' own
    if not isinstance(every, int):
        raise CheckpointError(f"{path}: its config's rescale_every: got {shown(repr(every))}, expected an integer")
    return every
