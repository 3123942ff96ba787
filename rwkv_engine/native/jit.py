"""Builds a library of kernels just in time, once per machine, and loads it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch

from rwkv_engine.errors import ExtensionError
from rwkv_engine.native import build, cache
from rwkv_engine.native.toolkit import cxx_command
from rwkv_engine.notices import log

# Failures that may not occur in another attempt: too little memory or disk space, killed processes.
PASSING = re.compile(
    r"No space left|Disk quota|Read-only file|Input/output error|[Kk]illed|"
    r"[Cc]annot allocate memory|[Oo]ut of memory|memory exhausted"
)
LONGEST = 300  # characters of a compiler's line in a message


def build_once(
    name: str, what: str, compiler: str, advice: Callable[[str], str] = lambda log: "", **arguments: Any
) -> tuple[Path, str]:
    """Loads a library from the cache. If it is missing, builds it, or waits for another process that is building it.

    A build that the compiler rejects is remembered, so that other processes do not repeat it. The outcome depends only
    on what `name` identifies and on packages that may be installed later, so the message says how to try again.

    Args:
        name: the file's name without extension; it identifies everything that the library depends on.
        what: what is built and how long that takes, for the notice.
        compiler: the compiler, for messages.
        advice: returns what to add to the message of a failed build, given the compilers' output.
        **arguments: the sources and flags for `torch.utils.cpp_extension.load`.

    Returns:
        The library's path, and when and by which compiler it was built.

    Raises:
        ExtensionError: the library cannot be built or loaded.
    """
    for path in cache.kept(f"{name}.so"):  # needs no lock and no permission to write
        open_library(path)
        return path, f"built here earlier by {compiler}"
    path = cache.writable_folder() / f"{name}.so"
    with cache.locked(path):
        if path.exists():
            open_library(path)
            return path, f"built here earlier by {compiler}"
        full = path.with_suffix(".log")
        if full.exists():
            reason = _reason(full.read_text(encoding="utf-8"), advice)
            raise ExtensionError(f"{compiler} could not build the kernels: {reason} (delete {full} to try again)")
        cache.remove_abandoned_builds(path.parent)
        log.warning(f"compiling {what} ...")
        started = time.monotonic()
        try:
            _build_and_open(path, arguments)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            text = _text(error)
            reason = _reason(text, advice)
            if PASSING.search(text) or isinstance(error, OSError):
                raise ExtensionError(
                    f"{compiler} could not build the kernels in {path.parent}: {reason}; {cache.ADVICE}"
                ) from error
            full.write_text(text, encoding="utf-8")
            where = f"(all in {full}; delete it to try again)"
            raise ExtensionError(f"{compiler} could not build the kernels: {reason} {where}") from error
    return path, f"built in {time.monotonic() - started:.0f} s by {compiler}"


def open_earlier(pattern: str, problem: str) -> Path:
    """Loads the newest library of an earlier build, for use if none can be built now.

    Args:
        pattern: a glob pattern of the file's name, without extension.
        problem: why none can be built, for the message.

    Raises:
        ExtensionError: none can be loaded; the message is `problem`.
    """
    for path in cache.kept(f"{pattern}.so"):
        try:
            open_library(path)
        except ExtensionError as error:
            log.warning(str(error))
        else:
            return path
    raise ExtensionError(problem)


def _build_and_open(path: Path, arguments: dict[str, Any]) -> None:
    from torch.utils import cpp_extension

    folder = cache.build_folder(path)
    rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with search_path(), _one_word_compiler(folder):
            cpp_extension.load(
                name=path.stem,
                extra_include_paths=[str(build.source_root())],
                build_directory=str(folder),
                is_python_module=False,
                **arguments,
            )
        os.replace(folder / path.name, path)
    finally:
        rmtree(folder, ignore_errors=True)


@contextmanager
def _one_word_compiler(folder: Path) -> Iterator[None]:
    """Sets CXX to a program without arguments, as torch requires; if CXX has arguments, to a script that adds them."""
    before = os.environ.get("CXX")
    command = cxx_command()
    if len(command) > 1:
        script = folder / "g++"
        script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
        script.chmod(0o700)
        command = [str(script)]
    os.environ["CXX"] = command[0]
    try:
        yield
    finally:
        if before is None:
            del os.environ["CXX"]
        else:
            os.environ["CXX"] = before


def open_library(path: Path) -> None:
    """Loads a library, which registers its operators.

    Raises:
        ExtensionError: the library cannot be loaded.
    """
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        raise ExtensionError(f"cannot open {path}: {_text(error)}; delete it to have it built again") from error


@contextmanager
def search_path() -> Iterator[None]:
    """Adds Python's folder to PATH, where ninja is if it was installed as a Python package."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([before, str(Path(sys.executable).parent)])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _text(error: Exception) -> str:
    """The error's message with that of its cause, in which torch keeps the dynamic linker's."""
    return f"{error}: {error.__cause__}" if isinstance(error, OSError) and error.__cause__ else str(error)


def _reason(output: str, advice: Callable[[str], str]) -> str:
    """The first line of the compilers' output that reports an error, cut if it is long, followed by the advice."""
    lines = [line.strip() for line in output.splitlines()] or ["no message"]
    # ninja writes FAILED, then the command, then what the command said.
    after = next((i + 2 for i, line in enumerate(lines[:-2]) if line.startswith("FAILED:")), 0)
    first = next((line for line in lines if re.search(r"\berror:|\bfatal *:|cannot find", line)), lines[after])
    return first[:LONGEST] + advice(output)
