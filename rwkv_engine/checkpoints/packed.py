"""The packed file: its matrices are stored in the memory layout of the kernels, so that it is mapped, not converted.

It is a safetensors file, which other tools can open and list, with these additional guarantees:

- Every tensor's data begin at a multiple of 64 bytes in the file. The header is padded with spaces. A tensor whose size
  is not a multiple of 64 is followed by a tensor of zero bytes, `NAME.pad`, since the format does not allow gaps.
- Vectors are float32 under their own names. A matrix X (N outputs, K inputs) is stored as X.FORM: `tiles` (see
  `csrc/kernels/tiles.h`), `input_major` (K rows of N numbers) or `rows` (N rows of K numbers: the embedding).
- A matrix with `dtype` "i8" consists of int8 numbers q, and of X.scales, float32 (N + K,), positive:
  W[n, k] = scales[n] q[n, k] scales[N + k].
- A matrix with `dtype` "i4" consists of bytes in the layouts of `rwkv_engine.ops.int4`, and of X.scales, float32 (K,),
  positive: those of the columns. It has no axes; only readers that know the layout can read it.
- The metadata contain one JSON object under `rwkv_engine.packed`: the `version` of this format; `model`, the generation
  of RWKV; the `fingerprint` of the model it was made from; its `config`, with the names of a config.json; the tag
  `layout` of the tiles; `axes`; and the `shape` [N, K], `form` and `dtype` of each matrix.

`axes` says for each form which dimensions of a stored tensor make up n and which make up k, the most significant first;
for `tiles` it is "nkknk". Therefore a reader can convert tiles of a layout it does not know to row-major matrices.

The format can be extended: a matrix of several dtypes will have a list as its entry, one for each block of rows, stored
as X.0.tiles, X.1.tiles, and so on. A reader refuses values that it does not know.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rwkv_engine.checkpoints.contents import StoredTensor, shown
from rwkv_engine.checkpoints.packed_matrix import PackedMatrix, stored_matrix
from rwkv_engine.checkpoints.safetensors import Header, raw_bytes
from rwkv_engine.core.architectures import CONFIGS
from rwkv_engine.core.weight_format import FORMATS
from rwkv_engine.errors import CheckpointError
from rwkv_engine.storage.atomic import replace_atomically

KEY = "rwkv_engine.packed"
VERSION = 1
ALIGNMENT = 64
BLOCK = 2 << 20  # bytes written at a time: the file's pages stay in memory, and become huge ones of this size
LAYOUT = "tiles.1"
AXES = {"tiles": "nkknk", "input_major": "kn", "rows": "nk"}


@dataclass(frozen=True)
class Packing:
    """The metadata of a packed file.

    Attributes:
        fingerprint: the fingerprint of the model that was packed, before quantisation.
        config: the model's sizes, with the names of a config.json.
        matrices: the matrices by their original names.
        layout: the tag of the tiles' layout.
        axes: the axes of each form, see above.
        model: the generation of RWKV.
        version: the version of the file format.
    """

    fingerprint: str
    config: dict[str, Any]
    matrices: dict[str, PackedMatrix]
    model: int
    layout: str = LAYOUT
    axes: dict[str, str] = field(default_factory=lambda: dict(AXES))
    version: int = VERSION

    def __str__(self) -> str:
        return f"{', '.join(sorted({matrix.dtype for matrix in self.matrices.values()}))} in {shown(self.layout)}"

    @property
    def is_quantised(self) -> bool:
        """Whether a matrix is quantised."""
        return self.quantised is not None

    @property
    def quantised(self) -> str | None:
        """The name of the format in which matrices are quantised, "i4" if some are, "i8", or None if all are floats."""
        names = {matrix.dtype for matrix in self.matrices.values() if not FORMATS[matrix.dtype].is_float}
        return min(names, default=None)


def pack_tensors(
    path: Path, packing: Packing, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensors: Iterable[Tensor]
) -> None:
    """Writes a packed file, completely or not at all; holds one tensor at a time.

    Args:
        path: the file; an existing one is replaced, and stays as it was if there is an error.
        packing: its metadata.
        shapes: dtype and shape of every tensor, by its name in the file.
        tensors: the tensors in the same order, contiguous.

    Raises:
        CheckpointError: the file cannot be written.
    """
    header = Header({"format": "pt", KEY: json.dumps(asdict(packing))})
    for name, (dtype, shape) in shapes.items():
        header.add(name, dtype, shape)
        if gap := -header.end % ALIGNMENT:
            header.add(f"{name}.pad", torch.uint8, (gap,))
    head = header.encoded(ALIGNMENT)
    try:
        with replace_atomically(path) as temporary, open(temporary, "wb", BLOCK) as file:
            file.write(head)
            for tensor in tensors:
                _write_in_blocks(file, raw_bytes(tensor))
                file.write(bytes(-file.tell() % ALIGNMENT))
                del tensor  # before the next one is made
            if file.tell() != len(head) + header.end:
                raise ValueError("the tensors are not of the shapes announced")
            file.flush()
            os.fsync(file.fileno())  # some file systems report only here that they are full
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write_in_blocks(file: BinaryIO, data: memoryview) -> None:
    """Writes to a file with a buffer of `BLOCK` bytes, so that each write to the system is one block of the file."""
    while data:
        size = BLOCK - file.tell() % BLOCK
        file.write(data[:size])
        data = data[size:]


def unpack(path: Path, stored: Mapping[str, StoredTensor], metadata: str) -> tuple[Packing, dict[str, StoredTensor]]:
    """The metadata of a packed file, and its tensors by their original names, as for any other checkpoint.

    Args:
        path: the file, for messages.
        stored: the tensors in the file.
        metadata: the JSON text of the metadata.

    Raises:
        CheckpointError: the file contradicts itself, or was written by a later version.
        Exception: of any class, if the metadata are not such an object; see `damage_reported`.
    """
    packing = _parsed(path, json.loads(metadata))
    rest = {name: tensor for name, tensor in stored.items() if not name.endswith(".pad")}
    found = {}
    for name, matrix in packing.matrices.items():
        tensor = rest.pop(f"{name}.{matrix.form}", None)
        if tensor is None or name in rest:
            raise CheckpointError(
                f"{path}: {shown(name)}: {'missing' if tensor is None else 'stored twice'}; pack it again"
            )
        axes = packing.axes[matrix.form]
        is_known = AXES.get(matrix.form) == axes and (packing.layout == LAYOUT or matrix.form != "tiles")
        scales = rest.pop(f"{name}.scales", None) if FORMATS[matrix.dtype].scaled_axes else None
        found[name] = stored_matrix(f"{path}: {shown(name)}", matrix, axes, is_known, tensor, scales)
    vectors = {name: StoredTensor(tensor.shape, tensor.read, "rows", tensor.read) for name, tensor in rest.items()}
    return packing, found | vectors


def _parsed(path: Path, content: dict[str, Any]) -> Packing:
    models = [config.version for config in CONFIGS]
    if content["version"] != VERSION or content["model"] not in models:
        raise CheckpointError(
            f"{path}: a packed file of version {shown(content['version'])} with an RWKV-{shown(content['model'])},"
            f" expected version {VERSION} with an RWKV-{' or '.join(map(str, models))}; upgrade rwkv_engine, or pack"
            " the model again"
        )
    known = list(FORMATS)
    matrices = {}
    for name, matrix in content["matrices"].items():
        dtype = matrix["dtype"] if isinstance(matrix, dict) else "several dtypes"
        if dtype not in known:
            raise CheckpointError(
                f"{path}: {shown(name)}: packed in {shown(dtype)}, expected one of {', '.join(known)}; upgrade"
                " rwkv_engine, or pack the model again"
            )
        n, k = matrix["shape"]
        matrices[name] = PackedMatrix((int(n), int(k)), str(matrix["form"]), dtype)
    if not re.fullmatch("[0-9a-f]{16}", content["fingerprint"]):
        raise ValueError("fingerprint: expected 16 hexadecimal digits")
    layout, axes = str(content["layout"]), dict(content["axes"])
    return Packing(content["fingerprint"], dict(content["config"]), matrices, int(content["model"]), layout, axes)
