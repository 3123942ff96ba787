"""Error messages for running out of memory: how much was needed, how much was free, and which strategy would fit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.hardware import free_memory
from rwkv_engine.core.main_memory import free_main_memory, within_limit
from rwkv_engine.core.strategy import Strategy
from rwkv_engine.errors import OutOfMemoryError

_SIGNS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")
# From the most precise to the smallest.
_ON_CPU = ("cpu fp32", "cpu bf16", "cpu fp32i8", "cpu bf16i8", "cpu bf16i4")
_ON_GPU = ("cuda fp16", "cuda fp16i8", "cuda fp16i4", "auto")
_SPARE = 1.1  # times the weights: room for one matrix while it is converted, and for the kernels

P = ParamSpec("P")
R = TypeVar("R")


class _Opened(Protocol):
    path: Path
    config: ModelConfig


C = TypeVar("C", bound=_Opened)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, torch or the system says that memory ran out."""
    if isinstance(error, (MemoryError, OutOfMemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, (OSError, RuntimeError)) and any(sign in text for sign in _SIGNS)


def out_of_memory_while_opening(path: Path) -> OutOfMemoryError:
    """The error for a file or directory for which memory is too small to map or read it."""
    files = path.iterdir() if path.is_dir() else [path]
    # The safetensors library maps a file, and torch maps it once more.
    needed = sum((1 + (file.suffix == ".safetensors")) * file.stat().st_size for file in files if file.is_file())
    return OutOfMemoryError(
        f"{path}: not enough memory to open it: it needs {_size(needed)}, {_size(free_main_memory())} are free;"
        f" {_make_room()}"
    )


@contextmanager
def conversion_memory_reported(path: Path) -> Iterator[None]:
    """Converts a lack of memory in the block, which converts a checkpoint, into an OutOfMemoryError."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemoryError):
            raise
        raise OutOfMemoryError(
            f"{path}: not enough memory to convert it, which takes one tensor at a time in the old and the new dtype;"
            f" {_size(free_main_memory())} are free; {_make_room()}"
        ) from error


def memory_errors_explained(load: Callable[Concatenate[C, Strategy, P], R]) -> Callable[Concatenate[C, Strategy, P], R]:
    """Decorates a function that loads a checkpoint under a strategy, so that it raises OutOfMemoryError.

    The message names a strategy that would have fitted into the memory that was free when loading began.
    """

    @functools.wraps(load)
    def explained(checkpoint: C, strategy: Strategy, /, *args: P.args, **kwargs: P.kwargs) -> R:
        devices = {placement.device for placement in strategy.place(checkpoint.config)}
        free = {device: free_memory(device) for device in devices | {"cpu"}}
        try:
            return load(checkpoint, strategy, *args, **kwargs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            needed = strategy.nbytes(checkpoint.config)
            sizes = ", ".join(f"{_size(size)} on {d} ({_size(free[d])} were free)" for d, size in needed.items())
            raise OutOfMemoryError(
                f"{checkpoint.path}: not enough memory to load it with strategy '{strategy}', which needs {sizes};"
                f" {_way_out(checkpoint.config, needed, free)}"
            ) from error

    return explained


def _way_out(config: ModelConfig, needed: Mapping[str, int], free: Mapping[str, int | None]) -> str:
    for text in _ON_CPU if set(needed) == {"cpu"} else _ON_GPU:
        other = Strategy.parse(text).resolve(config)
        sizes = other.nbytes(config)
        room = [free.get(device, free_memory(device)) for device in sizes]
        fits = all(n * _SPARE < (size or 0) for n, size in zip(sizes.values(), room, strict=True))
        if fits and (set(sizes) != set(needed) or sum(sizes.values()) < sum(needed.values())):
            return f"strategy '{text}' would fit ({_size(sum(sizes.values()))})"
    return f"no strategy would fit; {_make_room()}, or choose a smaller model"


def _make_room() -> str:
    limited = "" if within_limit() is None else "raise this process's limit (ulimit -v), or "
    return f"{limited}close other programs"


def _size(n_bytes: int | None) -> str:
    return "an unknown size" if n_bytes is None else f"{n_bytes / 1e9:,.2f} GB"
