"""Text from files and from standard input, as UTF-8, with or without a byte order mark."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rwkv_engine.cli.streams import reason
from rwkv_engine.errors import RequestError

STANDARD_INPUT = "-"  # its name among files


def read_text(file: str) -> str:
    """The text of a file; `-` is standard input.

    Raises:
        RequestError: it cannot be read, or is not UTF-8.
    """
    with reading(file):
        data = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).expanduser().read_bytes()
    return decoded(display_name(file), data, is_beginning=True)


def decoded(where: str, data: bytes, is_beginning: bool) -> str:
    """Bytes of UTF-8 as text.

    Args:
        where: the file, and the line if it is one, for messages.
        data: UTF-8.
        is_beginning: whether they are the first bytes of a file, where a byte order mark is no part of the text.

    Raises:
        RequestError: they are not UTF-8.
    """
    if is_beginning:
        data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        is_utf16 = is_beginning and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        hint = "; it begins with the byte order mark of UTF-16, so save it as UTF-8" if is_utf16 else ""
        raise RequestError(f"{where}: expected UTF-8 text: {error}{hint}") from error


def lines_of(file: str, source: BinaryIO) -> Iterator[bytes]:
    """The lines of an open file, with their ends.

    Raises:
        RequestError: they cannot be read.
    """
    while True:
        with reading(file):
            line = source.readline()
        if not line:
            return
        yield line


@contextmanager
def reading(file: str) -> Iterator[None]:
    """In this block an error of reading is a `RequestError` that names the file."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise RequestError(f"{display_name(file)}: cannot be read: {why}") from error


def display_name(file: str) -> str:
    """The name of a file as messages show it."""
    return "standard input" if file == STANDARD_INPUT else file
