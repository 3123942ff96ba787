"""`rwkv-engine generate`."""

from __future__ import annotations

import json
import time
from typing import Any, TextIO

import click

from rwkv_engine.cli.options import load, loading_options, model_option, sampling_options, stderr
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import TextStream
from rwkv_engine.pipeline import RWKV


@click.command()
@click.argument("prompt", required=False)
@click.option("--file", type=click.File(encoding="utf-8"), help="Read the prompt from a file; - is standard input.")
@click.option("--each-line", is_flag=True, help="With --file: every line is a prompt of its own.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a prompt instead of text.")
@click.option("--logprobs", type=int, help="With --json: report this many likeliest tokens beside each token.")
@model_option
@loading_options
@sampling_options()
def generate(
    prompt: str | None,
    file: TextIO | None,
    each_line: bool,
    as_json: bool,
    logprobs: int | None,
    model: str,
    revision: str | None,
    offline: bool,
    strategy: str,
    tokenizer: str | None,
    max_new_tokens: int,
    **sampling: Any,
) -> None:
    """Continues PROMPT and prints it with its continuation."""
    prompts = _prompts(prompt, file, each_line)
    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json")
    console = stderr()
    loaded = load(console, model, revision, offline, strategy, tokenizer)
    for one in prompts:
        stream = loaded.stream(one, max_new_tokens, logprobs=logprobs, **sampling)
        timed = _Timed(stream)
        if as_json:
            text = "".join(timed)
            click.echo(json.dumps(_record(loaded, one, text, stream), ensure_ascii=False))
        else:
            # The first piece comes before the prompt is printed: what is said on the way, about kernels, must not fall
            # into the text.
            click.echo(one + next(timed, ""), nl=False)
            for piece in timed:
                click.echo(piece, nl=False)
            click.echo()
        console.print(timed.report())


def _prompts(prompt: str | None, file: TextIO | None, each_line: bool) -> list[str]:
    if prompt is not None and file:
        raise click.UsageError("give PROMPT or --file, not both")
    if not file:
        if each_line:
            raise click.UsageError("--each-line needs --file")
        return [prompt or ""]
    try:
        text = file.read().removesuffix("\n")  # an editor's, or echo's
    except UnicodeDecodeError as error:
        raise RequestError(f"{file.name}: expected UTF-8 text: {error}") from error
    return text.split("\n") if each_line else [text]


def _record(model: RWKV, prompt: str, text: str, stream: TextStream) -> dict[str, Any]:
    record: dict[str, Any] = {
        "prompt": prompt,
        "text": text,
        "tokens": stream.tokens,
        "finish_reason": stream.finish_reason,
        "n_prompt": stream.n_prompt,
        "seed": stream.seed,
        "strategy": str(model.strategy),
    }
    if stream.logprobs:
        record["logprobs"] = [{"token": e.token, "logprob": e.logprob, "top": e.top} for e in stream.logprobs]
    return record


class _Timed:
    """Passes pieces on and times them: reading up to the first, writing from there on."""

    def __init__(self, stream: TextStream):
        self._stream = stream
        self._started = time.perf_counter()
        self._first: tuple[float, int] | None = None
        self._last = self._started

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> str:
        piece = next(self._stream)
        self._last = time.perf_counter()
        self._first = self._first or (self._last, len(self._stream.tokens))
        return piece

    def report(self) -> str:
        n_prompt, n_new = self._stream.n_prompt, len(self._stream.tokens)
        if not self._first or n_new <= self._first[1]:
            return f"read {n_prompt} tokens, wrote {n_new}"
        first, n_first = self._first
        return (
            f"read {n_prompt} tokens in {first - self._started:.2f} s (first call included),"
            f" wrote {n_new} at {(n_new - n_first) / (self._last - first):.0f} tok/s"
        )
