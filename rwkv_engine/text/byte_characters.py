"""The characters by which byte-level BPE represents bytes: printable ones stay, the others begin at U+0100."""

from __future__ import annotations

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def in_characters(data: bytes) -> str:
    """Represents each byte by its character."""
    return "".join(CHARACTER_OF[byte] for byte in data)
