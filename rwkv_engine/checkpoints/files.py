"""Lists the tensors of checkpoint files and Hugging Face directories, with their names and shapes.

Nothing in a file is ever executed: pickles are read with `weights_only=True`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkv_engine.checkpoints.contents import Contents, StoredTensor, shown, some
from rwkv_engine.checkpoints.failures import damage_reported
from rwkv_engine.checkpoints.foreign import foreign_format, head_of, is_safetensors, is_zip
from rwkv_engine.checkpoints.pth import read_pth
from rwkv_engine.checkpoints.safetensors import SUFFIX, read_safetensors
from rwkv_engine.errors import CheckpointError
from rwkv_engine.storage.json_object import read_json


def read_file(path: Path) -> Contents:
    """The contents of a `.safetensors`, `.pth`, `.pt`, `.ckpt` or `.bin`; the first bytes decide between the formats.

    Raises:
        CheckpointError: the file is damaged, truncated, or of another format, which the message names.
        OutOfMemoryError: there is not enough memory to read or map it.
    """
    with damage_reported(path):
        if not (head := head_of(path)):
            raise CheckpointError(f"{path}: the file is empty")
        if foreign := foreign_format(path):
            raise CheckpointError(f"{path}: {foreign}")
        if path.suffix == SUFFIX and is_zip(head):  # torch.load chooses the parser by the file's name
            raise CheckpointError(f"{path}: is a .pth file by its content; rename it to {path.stem}.pth")
        return read_safetensors(path) if path.suffix == SUFFIX or is_safetensors(head) else read_pth(path)


def read_directory(path: Path) -> Contents:
    """The contents of a Hugging Face directory, or of the only checkpoint file in a plain directory.

    Raises:
        CheckpointError: a file is missing or damaged, two files contain the same tensor, or the files do not match
            their index.
        OutOfMemoryError: there is not enough memory to read or map them.
    """
    with damage_reported(path):
        settings, files = _files_of(path)
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for file, listed in files.items():
        contents = read_file(file)
        part = contents.tensors
        if twice := part.keys() & tensors.keys():
            raise CheckpointError(f"{path}: two files contain {some(twice)}; download it again")
        if listed is not None and (wrong := part.keys() ^ listed):
            raise CheckpointError(
                f"{path}: {file.name} and the index disagree about {some(wrong)}; they do not belong together,"
                " download both again"
            )
        tensors |= part
        metadata |= contents.metadata
    return Contents(tensors, settings, metadata)


def stored_bytes(path: Path) -> int:
    """The size in bytes of the files that contain a checkpoint's tensors.

    Raises:
        CheckpointError: there are no such files.
    """
    with damage_reported(path):
        files = _files_of(path)[1] if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)


def _files_of(path: Path) -> tuple[dict[str, Any], dict[Path, set[str] | None]]:
    """The settings and tensor files of a Hugging Face directory, or the only checkpoint file of a plain one.

    Each file is mapped to the names of its tensors, if an index lists them, otherwise to None.
    """
    config = path / "config.json"
    settings = read_json(config, missing_ok=True)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return settings, {path / name: None}
        index = path / f"{name}.index.json"
        if index.is_file():
            return settings, {**_shards(index)}
    raw = sorted(p for p in path.iterdir() if p.suffix in (".pth", ".safetensors"))
    if len(raw) == 1:
        return settings, {raw[0]: None}
    if (path / "zero_to_fp32.py").is_file():
        raise CheckpointError(
            f"{path}: is a DeepSpeed checkpoint, divided among processes; join it with its own script,"
            " `python zero_to_fp32.py . OUTPUT`, and give the result"
        )
    found = ", ".join(p.name for p in raw) or "neither of them, and no .pth or .safetensors file"
    raise CheckpointError(
        f"{path}: expected model.safetensors or pytorch_model.bin (or its .index.json), found {found};"
        " name the file itself"
    )


def _shards(index: Path) -> dict[Path, set[str]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: expected a 'weight_map' from tensor names to file names")
    shards: dict[Path, set[str]] = {}
    for tensor, name in weight_map.items():
        shards.setdefault(index.parent / name, set()).add(tensor)
    for file in shards:
        if file.parent != index.parent or not file.is_file():
            raise CheckpointError(f"{index}: the shard {shown(file.name)!r} is not in the directory; download it again")
    return dict(sorted(shards.items()))
