"""`rwkv-engine generate --each-line`: many prompts, which share each pass over the weights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console

from rwkv_engine.caching import StateCache
from rwkv_engine.cli.options import progress_bar
from rwkv_engine.cli.record import record
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import TextRequest
from rwkv_engine.pipeline import RWKV

CACHE_BYTES = 2**28


def generate_each(
    console: Console, model: RWKV, prompts: Sequence[str], as_json: bool, resume: Path | None, **options: Any
) -> None:
    """Continues prompts together, and prints each with its continuation: in order; as JSON whenever one has ended.

    Args:
        console: for everything that is not a result.
        model: continues the prompts.
        prompts: the prompts.
        as_json: whether to print JSON objects, one a line, with the index of the prompt.
        resume: a file of such lines. Prompts whose results it contains are skipped; the others' are added to it.
        options: those of `RWKV.generate_many`.

    Raises:
        RequestError: the file contains something else, or results of other prompts; or it cannot be read or written.
    """
    done = set() if resume is None else _indices(resume, prompts)
    left = [index for index in range(len(prompts)) if index not in done]
    if done:
        console.print(f"{resume}: contains {len(done)} of {len(prompts)} results")
    model.state_cache = StateCache(CACHE_BYTES)  # lines often begin in the same way
    started, n_tokens = time.perf_counter(), 0

    def texts() -> Iterator[tuple[int, TextRequest]]:
        nonlocal n_tokens
        with progress_bar(console, "generating") as bar:
            task = bar.add_task("generating", total=len(left))
            for text in model.generate_many((prompts[index] for index in left), **options):
                yield left[text.index], text
                n_tokens += len(text.tokens)
                bar.update(task, advance=1)

    if resume is not None:
        with _appending(resume) as file:
            for index, text in texts():
                file.write(_line(model, prompts[index], index, text) + "\n")
                file.flush()
    elif as_json:
        for index, text in texts():
            click.echo(_line(model, prompts[index], index, text))
    else:
        for index, text in _in_order(texts()):
            click.echo(prompts[index] + text.text)
    speed = n_tokens / (time.perf_counter() - started)
    saved = model.state_cache.statistics.tokens_saved
    known = f"; {saved} tokens that prompts begin with were known from earlier ones" if saved else ""
    console.print(f"continued {len(left)} prompts by {n_tokens} tokens at {speed:.0f} tokens per second{known}")


def _line(model: RWKV, prompt: str, index: int, text: TextRequest) -> str:
    values = record(model, prompt, text.generated, text.finish_reason, len(text.prompt), text.sampler.seed)
    return json.dumps({**values, "index": index}, ensure_ascii=False)


def _in_order(texts: Iterable[tuple[int, TextRequest]]) -> Iterator[tuple[int, TextRequest]]:
    """The same texts by their indices, which are 0, 1, 2 ..., each as soon as those before it are there."""
    early: dict[int, TextRequest] = {}
    following = 0
    for index, text in texts:
        early[index] = text
        while following in early:
            yield following, early.pop(following)
            following += 1


def _indices(path: Path, prompts: Sequence[str]) -> set[int]:
    """The indices of the prompts whose results a file contains; cuts off a last line that was not written completely.

    Raises:
        RequestError: see `generate_each`.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        done = set()
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                result = json.loads(line)
                index, prompt = result["index"], result["prompt"]
            except (ValueError, TypeError, KeyError) as error:
                raise RequestError(f"{path}, line {number}: expected a result of --each-line --json") from error
            if not (isinstance(index, int) and 0 <= index < len(prompts) and prompts[index] == prompt):
                raise RequestError(f"{path}, line {number}: is the result of other prompts; resume with those")
            done.add(index)
        if len(whole) < len(data):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
        return done
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from error


@contextmanager
def _appending(path: Path) -> Iterator[TextIO]:
    try:
        with open(path, "a", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise RequestError(f"{path}: cannot be written: {error.strerror}") from error
