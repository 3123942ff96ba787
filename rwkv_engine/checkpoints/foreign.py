"""Recognises files of unsupported formats by their first bytes, so that an error message can name the format."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

_AGAIN = "download it again, from the link to the file itself ('resolve' in the address on the Hugging Face Hub)"
_SOURCE = "give the .pth or .safetensors file that it was made from"

# A pattern of the first bytes, the format's name, and what the user can do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"version https://git-lfs\.github\.com/",
        "a Git LFS pointer, which stands for the weights",
        "fetch the weights with `git lfs pull`, or download the file itself",
    ),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml|!--)", "a web page, saved in place of the model", _AGAIN),
    (rb"\s*\{\s*\"", "JSON text, saved in place of the model", _AGAIN),
    (rb"GGUF", "a GGUF file, the format of llama.cpp", _SOURCE),
    # Written as little-endian integers, so the letters of ggmf, ggml, ggjt and ggla are reversed.
    (rb"fmgg|lmgg|tjgg|algg", "a ggml file, the format of rwkv.cpp", _SOURCE),
    (rb"\x1f\x8b", "compressed with gzip", "decompress it with `gunzip`"),
    (rb"\xfd7zXZ\x00", "compressed with xz", "decompress it with `unxz`"),
    (rb"\x28\xb5\x2f\xfd", "compressed with Zstandard", "decompress it with `unzstd`"),
    (rb"BZh[1-9]", "compressed with bzip2", "decompress it with `bunzip2`"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (rb"Rar!", "a RAR archive", "unpack it"),
    (rb"(?s).{257}ustar", "a tar archive", "unpack it with `tar xf`"),
    (rb"\x89HDF", "an HDF5 file", _SOURCE),
    (rb"\x93NUMPY", "a NumPy array", _SOURCE),
)
_ZIP = b"PK\x03\x04"
_HEAD = 512  # bytes that are inspected


def foreign_format(path: Path) -> str | None:
    """The format of an unsupported file and what the user can do, for a message; None if it may be a checkpoint.

    Raises:
        OSError: the file cannot be read.
    """
    head = head_of(path)
    for pattern, what, way_out in _FOREIGN:
        if re.match(pattern, head):
            return f"is {what}; {way_out}"
    return _foreign_zip(path) if head.startswith(_ZIP) else None


def head_of(path: Path) -> bytes:
    """The first bytes of a file."""
    with open(path, "rb") as file:
        return file.read(_HEAD)


def is_zip(head: bytes) -> bool:
    """Whether a file with these first bytes is a zip archive, as a `.pth` is."""
    return head.startswith(_ZIP)


def is_safetensors(head: bytes) -> bool:
    """Whether a file with these first bytes is a `.safetensors`: the length of its header, then a JSON object."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000  # the format's own limit


def _foreign_zip(path: Path) -> str | None:
    """As `foreign_format`, for a zip archive: it is a `.pth` if it contains a `data.pkl`."""
    if not zipfile.is_zipfile(path):  # its table of contents is at the end
        return "is cut off: its last part is missing; download or copy it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "is a TorchScript program, not a state dict; ask its author for a file with the state dict alone"
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return None
    models = [name for name in names if name.endswith((".pth", ".pt", ".bin", ".safetensors", ".ckpt"))]
    inside = f"holds {models[0][:100]!r}" if models else "holds no checkpoint"
    return f"is a zip archive that {inside}; unpack it, and give the checkpoint itself"
