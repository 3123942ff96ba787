"""`rwkv-engine embed`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import click
import numpy as np
from rich.console import Console
from torch import Tensor

from rwkv_engine.cli.input import STANDARD_INPUT, decoded, display_name, lines_of, reading
from rwkv_engine.cli.options import load, loading_options, progress_bar, stderr
from rwkv_engine.embedding import POOLINGS, dimension
from rwkv_engine.errors import RequestError
from rwkv_engine.progress import Progress
from rwkv_engine.storage.atomic import file_problem, replace_atomically

# Batches of lines held at once: with more of them, lines that share a batch have more similar lengths.
BATCHES = 16
Line = tuple[int, str]  # its number, from 1, and what it says
Write = Callable[[list[Line], Tensor], None]


@click.command()
@click.argument("model")
@click.argument("file", default="-")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="NAME.npy or NAME.jsonl; an existing file is replaced. Without it, JSON lines go to standard output.",
)
@click.option(
    "--pooling",
    type=click.Choice(POOLINGS),
    default="mean",
    show_default=True,
    help="The mean over all tokens, the last token, or the WKV state.",
)
@click.option("--normalize", is_flag=True, help="Scale every vector to length 1.")
@click.option("--skip-empty", is_flag=True, help="Skip blank lines, which are an error otherwise.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="The largest number of lines in one forward pass.",
)
@loading_options
def embed(
    model: str,
    file: str,
    output: Path | None,
    pooling: str,
    normalize: bool,
    skip_empty: bool,
    batch_size: int,
    revision: str | None,
    offline: bool,
    strategy: str,
    tokenizer: str | None,
) -> None:
    """Computes an embedding vector of each line of FILE, which is UTF-8; - (the default) is standard input.

    MODEL is tales, a path or a hub id. JSON lines are {"line": its number, "text": ...,
    "embedding": [...]}; an .npy file is a float32 array with a row for each line. Vectors are written as lines are
    read, so memory does not grow with the file.
    """
    if output:
        _check(output)
    console = stderr()
    with _opened(file) as source:
        loaded = load(console, model, revision, offline, strategy, tokenizer)
        width = dimension(loaded.config, pooling)
        lines = _lines(file, source, skip_empty)
        n_lines = 0
        with _written(output, width) as write, _progress(console, source, output) as tell:
            while window := list(islice(lines, BATCHES * batch_size)):
                write(window, loaded.embed([text for _, text in window], pooling, normalize, batch_size, tell))
                n_lines += len(window)
            if not n_lines:
                raise RequestError(f"{display_name(file)}: expected at least one line of text, got none")
    if output:
        console.print(f"{output}: {n_lines:,} lines, {width:,} numbers each")


def _check(output: Path) -> None:
    """Checks the output before a model is loaded."""
    if output.suffix not in _FORMATS:
        raise click.UsageError(f"-o {output}: expected a name that ends in {' or '.join(_FORMATS)}")
    if problem := file_problem(output):
        raise RequestError(f"{output}: {problem}")


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    with reading(file):
        source = open(file, "rb")  # noqa: SIM115 - closed below
    with source:
        yield source


def _lines(file: str, source: BinaryIO, skip_empty: bool) -> Iterator[Line]:
    """The lines with their numbers, without their ends. Only \\n and \\r\\n end a line."""
    for number, line in enumerate(lines_of(file, source), start=1):
        where = f"{display_name(file)}, line {number}"
        text = decoded(where, line.removesuffix(b"\n").removesuffix(b"\r"), is_beginning=number == 1)
        if text.strip():
            yield number, text
        elif not skip_empty:
            raise RequestError(f"{where}: is blank, expected a text; --skip-empty leaves it out")


@contextmanager
def _progress(console: Console, source: BinaryIO, output: Path | None) -> Iterator[Progress]:
    """Yields what `RWKV.embed` calls; the bar counts the bytes of the file, where there is one."""
    try:
        size = os.fstat(source.fileno()).st_size or None
    except OSError:
        size = None
    before = 0

    def tell(done: int, total: int) -> None:
        nonlocal before
        if size:
            here = source.tell()
            bar.update(task, completed=before + (here - before) * done / total)
            before = here if done == total else before

    bar = progress_bar(console, "embedding")
    bar.disable = bar.disable or (output is None and sys.stdout.isatty())  # vectors and the bar would share a screen
    with bar:
        task = bar.add_task("embedding", total=size)
        yield tell


@contextmanager
def _written(output: Path | None, width: int) -> Iterator[Write]:
    """Yields what writes the next lines and their vectors; a file appears whole or not at all."""
    if output is None:
        yield _print_json
        return
    try:
        with (
            replace_atomically(output) as temporary,
            open(temporary, "wb") as file,
            _FORMATS[output.suffix](file, width) as write,
        ):
            yield write
    except OSError as error:  # not one of reading: those are told where they happen
        raise RequestError(f"{output}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _jsonl(file: BinaryIO, width: int) -> Iterator[Write]:
    yield lambda lines, vectors: file.writelines(f"{row}\n".encode() for row in _json(lines, vectors))


@contextmanager
def _npy(file: BinaryIO, width: int) -> Iterator[Write]:
    """The number of rows is written in the end, over the first header: NumPy leaves room for one of 21 digits."""

    def header(n_rows: int) -> None:
        file.seek(0)
        about = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, width)}
        np.lib.format.write_array_header_1_0(file, about)

    n_rows = 0

    def write(lines: list[Line], vectors: Tensor) -> None:
        nonlocal n_rows
        n_rows += len(vectors)
        file.write(vectors.numpy().astype("<f4", copy=False).tobytes())

    header(0)
    yield write
    header(n_rows)


_FORMATS = {".npy": _npy, ".jsonl": _jsonl}


def _json(lines: list[Line], vectors: Tensor) -> Iterator[str]:
    for (number, text), vector in zip(lines, vectors.tolist(), strict=True):
        # Nine digits tell any float32 from the next one.
        numbers = ", ".join(f"{value:.9g}" for value in vector)
        yield f'{{"line": {number}, "text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{numbers}]}}'


def _print_json(lines: list[Line], vectors: Tensor) -> None:
    for row in _json(lines, vectors):
        click.echo(row)
