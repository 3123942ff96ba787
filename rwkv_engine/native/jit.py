"""Builds a library of kernels just in time, once per machine, and opens it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rwkv_engine.errors import ExtensionError
from rwkv_engine.native import build
from rwkv_engine.notices import log


def cache_folder() -> Path:
    """Where just-in-time builds are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rwkv_engine"


def build_once(
    name: str, what: str, compiler: str, advice: Callable[[str], str] = lambda log: "", **arguments: Any
) -> tuple[Path, str]:
    """Opens a library of the cache; builds it first if it is not there, or waits for the process that is at it.

    Args:
        name: of the file, without extension; it says all that the library depends on.
        what: is built, and how long that takes, for the person who waits.
        compiler: what builds it, for messages.
        advice: what to add to the message of a failed build, by what the compilers printed.
        **arguments: of `torch.utils.cpp_extension.load`: sources and flags.

    Returns:
        The library's path, and how it came to be.

    Raises:
        ExtensionError: it cannot be built or opened.
    """
    import fcntl  # Unix only, like the kernels' build

    path = cache_folder() / f"{name}.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    # torch's own build lock waits for ever once its holder was killed; the kernel drops this one with the process.
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            open_library(path)
            return path, f"built here earlier by {compiler}"
        log.warning(f"compiling {what} ...")
        started = time.monotonic()
        try:
            _build_and_open(path, arguments)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            full = path.with_suffix(".log")
            text = _text(error)
            full.write_text(text, encoding="utf-8")
            first = _first_error_line(text) + advice(text)
            raise ExtensionError(f"{compiler} could not build the kernels: {first} (all in {full})") from error
    return path, f"built in {time.monotonic() - started:.0f} s by {compiler}"


def _build_and_open(path: Path, arguments: dict[str, Any]) -> None:
    from torch.utils import cpp_extension

    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build_") as folder, search_path():
        cpp_extension.load(
            name=path.stem,
            extra_include_paths=[str(build.source_root())],
            build_directory=folder,
            is_python_module=False,
            **arguments,
        )
        os.replace(Path(folder) / path.name, path)


def open_library(path: Path) -> None:
    """Opens a library, whose operators register themselves.

    Raises:
        ExtensionError: it cannot be opened.
    """
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        raise ExtensionError(f"cannot open {path}: {_text(error)}; delete it to have it built again") from error


@contextmanager
def search_path() -> Iterator[None]:
    """ninja comes as a Python package, whose folder is not on PATH in an environment that was not activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([before, str(Path(sys.executable).parent)])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _text(error: Exception) -> str:
    """With what the linker said, which torch keeps apart."""
    return f"{error}: {error.__cause__}" if isinstance(error, OSError) and error.__cause__ else str(error)


def _first_error_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines()]
    return next((line for line in lines if re.search(r"\berror:|\bfatal *:|cannot find", line)), lines[0])
