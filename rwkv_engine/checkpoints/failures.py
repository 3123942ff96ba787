"""Tells apart the errors that occur while a file is parsed: a damaged file, too little memory, and an interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rwkv_engine.checkpoints.memory import is_out_of_memory, out_of_memory_while_opening
from rwkv_engine.errors import CheckpointError, RwkvError


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Converts the exceptions of file parsers into CheckpointErrors.

    The parsers (zip, pickle, safetensors, json) raise exceptions of almost any class on damaged input, so every
    `Exception` is caught. A lack of memory and errors of the operating system get messages of their own.

    Raises:
        CheckpointError: the file is damaged or cannot be read.
        OutOfMemoryError: there is not enough memory to read or map it.
    """
    try:
        with interrupts_kept():
            yield
    except RwkvError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory_while_opening(path) from error
        if isinstance(error, OSError) and error.strerror:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint ({_first_line(error)}); download or export it again"
        ) from error


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Re-raises the exception of the Ctrl-C handler at the end of the block if the block replaced or swallowed it.

    If a KeyboardInterrupt occurs while torch's C code inspects an object, torch treats it as an error of the object
    and raises, for example, a ValueError that does not mention it.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: BaseException | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        try:
            handler(number, frame)
        except BaseException as interrupt:
            raised = interrupt
            raise

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if raised is not None:
            raise raised from error
        raise
    finally:
        signal.signal(signal.SIGINT, handler)
    if raised is not None:
        raise raised


def _first_line(error: Exception) -> str:
    # torch's messages begin with the advice to load without `weights_only`, which would run code from the file
    lines = [line for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__
