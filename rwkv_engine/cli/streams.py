"""The standard streams: what happens where one is closed, full, or has an encoding that lacks a character."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, Any, TextIO

from rwkv_engine.errors import RwkvError


class StreamError(RwkvError):
    """Standard output cannot be written."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """In this block errors of standard output are a `StreamError`, and all three standard streams exist.

    Messages that standard error does not take, as on a full disk, are discarded, so that they fail no work. What cannot
    be written to either stream is discarded at the end: Python would try once more, and complain.
    """
    _open_closed_ones()
    output, messages = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Output(output), _Messages(messages)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = output, messages
        for stream in (output, messages):
            try:
                stream.flush()
            except (OSError, ValueError):
                with suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Stream:
    """A text stream that treats errors of writing in its own way."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As `TextIO.write`."""
        with self._errors():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As `TextIO.flush`."""
        with self._errors():
            self._stream.flush()

    def _errors(self) -> AbstractContextManager[None]:
        raise NotImplementedError


class _Output(_Stream):
    """A text stream whose errors say which stream it is, and why it cannot be written."""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            raise StreamError(
                f"standard output: its encoding {self._stream.encoding} cannot represent {character!a}; set the"
                " environment variable PYTHONIOENCODING=utf-8"
            ) from error
        except OSError as error:
            raise StreamError(f"standard output: cannot be written: {reason(error)}") from error


class _Messages(_Stream):
    """A text stream that discards what it cannot write."""

    def _errors(self) -> AbstractContextManager[None]:
        return suppress(OSError)


def reason(error: OSError) -> str:
    """Why a stream cannot be used."""
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)


def was_closed(stream: TextIO) -> bool:
    """Whether a standard stream was closed when the program started."""
    return stream in _REPLACED


_REPLACED: list[IO[Any]] = []


def _open_closed_ones() -> None:
    """Replaces each standard stream that was closed when the program started (Python has None there).

    Without this the next file that is opened would get the number of the closed one, and what some library prints would
    end up in it. The new standard input cannot be read and the new standard output cannot be written, so that using
    them is an error; messages to a closed standard error are discarded.
    """
    for name, mode, access in (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, access)
            stream = open(descriptor, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            _REPLACED.append(stream)
            setattr(sys, name, stream)
