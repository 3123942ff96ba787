"""A snapshot as compressed bytes.

The numbers of a state have little to compress but their signs and exponents, so the bytes of all numbers are sorted by
their place in a number before.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from rwkv_engine.checks import require
from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.core.state import State

# By the names that users give them.
DTYPES: Mapping[str, str] = MappingProxyType({"float32": "<f4", "float16": "<f2"})
_HEADER = struct.Struct("<BxHIQ")  # the dtype, and the numbers of unread tokens, of bytes shown, and of tokens read
MOST_UNREAD = 2**14 - 1


class Contents:
    """Packs and unpacks snapshots of one model.

    Attributes:
        most_bytes: the largest size of a packed snapshot.
    """

    def __init__(self, config: ModelConfig, fingerprint: str):
        self._fingerprint = fingerprint
        self._shapes = {field.name: (1, config.n_layer, *field.shape) for field in config.state_fields()}
        self._n_vocab = config.n_vocab
        self._most = _HEADER.size + 4 * MOST_UNREAD + 4 * self._numbers
        # What zstd makes of what it cannot compress.
        self.most_bytes = self._most + self._most // 256 + 1024

    @property
    def _numbers(self) -> int:
        """How many numbers a state has."""
        return sum(int(np.prod(shape)) for shape in self._shapes.values())

    def pack(self, snapshot: Snapshot, dtype: str) -> bytes:
        """The bytes of a snapshot; with a dtype of 16 bits, unless the state has numbers that are too large for it.

        Raises:
            RequestError: the dtype is unknown, or too many tokens are unread.
        """
        require("dtype", dtype, str, lambda name: name in DTYPES, f"one of {', '.join(DTYPES)}")
        require("unread", len(snapshot.unread), int, lambda n: n <= MOST_UNREAD, f"at most {MOST_UNREAD} tokens")
        fields = [snapshot.state.fields[name].detach().cpu().contiguous().numpy() for name in self._shapes]
        exact = np.concatenate([field.reshape(-1) for field in fields]).astype("<f4")
        with np.errstate(over="ignore"):
            numbers = exact.astype(DTYPES[dtype])
        if (np.isinf(numbers) & np.isfinite(exact)).any():
            numbers, dtype = exact, "float32"
        header = _HEADER.pack(
            list(DTYPES).index(dtype), len(snapshot.unread), snapshot.n_shown, int(snapshot.state.position)
        )
        ids = np.array(snapshot.unread, "<i4").tobytes()
        planes = numbers.view(np.uint8).reshape(-1, numbers.itemsize).T.tobytes()
        return zstandard.ZstdCompressor().compress(header + ids + planes)

    def unpack(self, data: bytes) -> Snapshot:
        """The snapshot of bytes that `pack` made, on the CPU. Nothing larger than `most_bytes` is allocated.

        Raises:
            ValueError: they are others.
        """
        try:
            content = zstandard.get_frame_parameters(data)
            if not _HEADER.size <= content.content_size <= self._most:
                raise ValueError(f"{content.content_size} bytes")
            raw = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
            kind, n_unread, n_shown, position = _HEADER.unpack_from(raw)
            dtype = np.dtype(list(DTYPES.values())[kind])
            begin = _HEADER.size + 4 * n_unread
            if len(raw) != begin + dtype.itemsize * self._numbers:
                raise ValueError(f"{len(raw)} bytes")
            unread = np.frombuffer(raw, "<i4", n_unread, _HEADER.size)
            if n_unread and not 0 <= unread.min() <= unread.max() < self._n_vocab:
                raise ValueError("no ids")
            planes = np.frombuffer(raw, np.uint8, offset=begin).reshape(dtype.itemsize, -1)
            numbers = np.ascontiguousarray(planes.T).view(dtype).reshape(-1).astype(np.float32)
            return Snapshot(self._state(numbers, position), tuple(unread.tolist()), n_shown)
        except (zstandard.ZstdError, struct.error, IndexError, OverflowError, RuntimeError) as error:
            raise ValueError(str(error)) from error

    def _state(self, numbers: NDArray[np.float32], position: int) -> State:
        fields, begin = dict[str, Tensor](), 0
        for name, shape in self._shapes.items():
            end = begin + int(np.prod(shape))
            fields[name] = torch.from_numpy(numbers[begin:end].reshape(shape).copy())
            begin = end
        return State(fields, torch.tensor([position], dtype=torch.int64), self._fingerprint)
