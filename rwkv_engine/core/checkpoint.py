"""Tensors on disk: found, named, checked against each other, and read one at a time.

Formats: BlinkDL `.pth` (zip, mapped; legacy, read whole), `.safetensors` with original or Hugging Face names, and
Hugging Face directories (`config.json` with single or sharded safetensors or `pytorch_model.bin`). Nothing in a file is
ever executed: pickles are read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.mapped import release_pages
from rwkv_engine.core.names import to_original
from rwkv_engine.errors import CheckpointError

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk; `read` returns it, as a view of the mapped file where the format allows."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


class Checkpoint:
    """An RWKV-4 checkpoint whose names, shapes and sizes agree with each other.

    Attributes:
        path: what was opened.
        config: the model's numbers, from the tensor shapes.
    """

    def __init__(self, path: Path, tensors: dict[str, StoredTensor], settings: dict[str, Any] | None = None):
        self.path = path
        found = _canonical(path, tensors, settings or {})
        self.config = _checked_config(path, {name: t.shape for name, t in found.items()}, settings or {})
        self._shapes = self.config.tensor_shapes()
        self._tensors = {name: found[name] for name in self._shapes}

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Opens a file or a directory; reads names and shapes, no weights (a legacy `.pth` is read whole).

        Raises:
            CheckpointError: nothing there, no checkpoint, damaged, another architecture, or numbers that disagree.
        """
        path = Path(path)
        if path.is_dir():
            with _damage_reported(path):
                settings, files = _directory(path)
            return cls(path, _joined(path, files), settings)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file or directory")
        return cls(path, _read_file(path))

    @property
    def names(self) -> list[str]:
        """Original names of all tensors, in the order of `ModelConfig.tensor_shapes`."""
        return list(self._tensors)

    def read(self, name: str) -> Tensor:
        """The tensor as stored (its dtype), vectors one-dimensional. Call `release` when it has been copied.

        Raises:
            CheckpointError: it is not a floating-point tensor, or the file is damaged.
        """
        with _damage_reported(self.path):
            tensor = self._tensors[name].read()
        if tensor.dtype not in FLOAT_TYPES:
            raise CheckpointError(f"{self.path}: {name}: expected a floating-point tensor, got {tensor.dtype}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(f"{self.path}: {name}: holds no numbers ({tensor.layout}, {tensor.device})")
        return tensor.detach().reshape(self._shapes[name])

    @staticmethod
    def release(tensor: Tensor) -> None:
        """Gives a tensor's file pages back, so that loading never holds the file and the placed weights together."""
        release_pages(tensor)

    def fingerprint(self) -> str:
        """Identifies the model, whatever file holds it.

        A hash of all vectors and of the first row of every matrix in float32: enough to tell trained models apart
        without reading gigabytes.
        """
        digest = hashlib.sha256(repr(self.config).encode())
        for name in self.names:
            tensor = self.read(name)
            part = (tensor if tensor.ndim == 1 else tensor[0]).float().contiguous()
            digest.update(name.encode())
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()[:16]


class _damage_reported:
    """Turns whatever a parser of a foreign format throws into a CheckpointError.

    The parsers (zip, pickle, safetensors, json) raise almost anything on damaged input, hence every `Exception`.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.strerror:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            raise CheckpointError(
                f"{self.path}: damaged, or not a checkpoint ({_first_line(error)}); download or export it again"
            ) from error


def _first_line(error: Exception) -> str:
    # torch begins with the advice to load without `weights_only`, which is the last thing to do here
    lines = [line for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


# --- files -----------------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> dict[str, StoredTensor]:
    with _damage_reported(path):
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)


def _joined(path: Path, files: list[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        part = _read_file(file)
        if twice := part.keys() & tensors.keys():
            raise CheckpointError(f"{path}: {_some(twice)} in two files; download it again")
        tensors |= part
    return tensors


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    file = safe_open(path, framework="pt")  # stays open: tensors read later are views of this mapping
    return {
        name: StoredTensor(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
        for name in file.keys()  # noqa: SIM118 - it is no mapping
    }


def _read_pth(path: Path) -> dict[str, StoredTensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except Exception as error:
        if refused := re.search(r"unsupported (?:global: )?GLOBAL (\S+)", str(error), re.IGNORECASE):
            raise CheckpointError(
                f"{path}: holds more than tensors ({refused[1]}), and loading it would run code from it; refused."
                " Ask its author for a file with the state dict alone"
            ) from error
        raise
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: expected a dictionary of tensors, found {name!r}: {type(tensor).__name__}")
    return {name: StoredTensor(tuple(t.shape), partial(_same, t)) for name, t in content.items()}


def _can_be_mapped(path: Path) -> bool:
    """The legacy format is one pickle; and a zip someone has compressed again holds no tensor as it is in memory."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _directory(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Settings and tensor files of a Hugging Face directory, or the one raw file of a plain one."""
    config = path / "config.json"
    settings = _read_json(config) if config.is_file() else {}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return settings, [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            return settings, _shards(index)
    raw = sorted(p for p in path.iterdir() if p.suffix in (".pth", ".safetensors"))
    if len(raw) == 1:
        return settings, raw
    found = ", ".join(p.name for p in raw) or "neither of them, and no .pth or .safetensors file"
    raise CheckpointError(
        f"{path}: expected model.safetensors or pytorch_model.bin (or its .index.json), found {found};"
        " name the file itself"
    )


def _shards(index: Path) -> list[Path]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{index}: expected a 'weight_map' from tensor names to file names")
    files = [index.parent / name for name in sorted(set(names.values()))]
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise CheckpointError(f"{index}: the shard {file.name!r} is not in the directory; download it again")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    with _damage_reported(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


# --- meaning ---------------------------------------------------------------------------------------------------------


def _canonical(path: Path, tensors: dict[str, StoredTensor], settings: dict[str, Any]) -> dict[str, StoredTensor]:
    renamed = {to_original(name): tensor for name, tensor in tensors.items()}
    if len(renamed) != len(tensors):
        raise CheckpointError(f"{path}: two tensors have one name, once with and once without the 'rwkv.' prefix")
    if "head.weight" not in renamed and settings.get("tie_word_embeddings") and "emb.weight" in renamed:
        renamed["head.weight"] = renamed["emb.weight"]
    return renamed


_OTHER_ARCHITECTURES = (  # a pattern in tensor names, and what it is a sign of
    (r"\.x_r$|\.r_k$", "RWKV-7"),
    (r"time_maa", "RWKV-6"),
    (r"att\.ln_x\.", "RWKV-5"),
    (r"ffnPre", "RWKV-4 trained with pre_ffn"),
    (r"^head_[qk]\.", "RWKV-4 trained with head_qk"),
    (r"^pos_emb_", "RWKV-4 trained with my_pos_emb"),
    (r"\.tiny_", "RWKV-4 trained with tiny attention"),
    (r"att\.(qq|kk|vv|oo)\.", "RWKV-4 trained with extra attention"),
    (r"ffn\.(aa|bb)\.", "RWKV-4 trained with MishGLU"),
)


def _checked_config(path: Path, shapes: dict[str, tuple[int, ...]], settings: dict[str, Any]) -> ModelConfig:
    for pattern, what in _OTHER_ARCHITECTURES:
        found = next((name for name in shapes if re.search(pattern, name)), None)
        if found:
            raise CheckpointError(f"{path}: this is {what} (it has {found}); only plain RWKV-4 runs here")
    blocks = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))}
    sizes = ("emb.weight", "blocks.0.att.key.weight", "blocks.0.ffn.key.weight")
    for name in sizes:
        if len(shapes.get(name, ())) != 2:
            got = f"shape {shapes[name]}" if name in shapes else f"{len(shapes)} other tensors"
            raise CheckpointError(f"{path}: not an RWKV-4 checkpoint: expected a matrix {name}, got {got}")
    (n_vocab, n_embd), (n_att, _), (n_ffn, _) = (shapes[name] for name in sizes)
    eps = settings.get("layer_norm_epsilon", 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(f"{path}: config.json: layer_norm_epsilon: got {eps!r}, expected a small positive number")
    config = ModelConfig(len(blocks), n_embd, n_att, n_ffn, n_vocab, layer_norm_eps=eps)
    _check_shapes(path, shapes, config)
    _check_settings(path, settings, config)
    return config


def _check_shapes(path: Path, shapes: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    expected = config.tensor_shapes()
    missing, unknown = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    if missing:
        raise CheckpointError(f"{path}: tensors are missing: {_some(missing)}; download or export it again")
    if unknown:
        raise CheckpointError(f"{path}: tensors RWKV-4 does not have: {_some(unknown)}; is it another architecture?")
    for name, shape in expected.items():
        got = shapes[name]
        # Time mixes are stored as (1, 1, C): a vector may have further dimensions of 1.
        same = got == shape if len(shape) == 2 else math.prod(got) == max(got, default=1) == shape[0]
        if not same or 0 in shape:
            raise CheckpointError(
                f"{path}: {name}: got shape {got}, expected {shape if 0 not in shape else 'sizes > 0'}"
            )


def _check_settings(path: Path, settings: dict[str, Any], config: ModelConfig) -> None:
    expected = {
        "model_type": "rwkv",
        "vocab_size": config.n_vocab,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "attention_hidden_size": config.n_att,
        "intermediate_size": config.n_ffn,
    }
    for key, value in expected.items():
        if settings.get(key) is not None and settings[key] != value:
            raise CheckpointError(
                f"{path}: config.json says {key} = {settings[key]!r}, the tensors say {value!r};"
                " the two do not belong together"
            )


def _some(names: set[str]) -> str:
    listed = sorted(names)[:3]
    return ", ".join(listed) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
