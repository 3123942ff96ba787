"""`rwkv-engine generate`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import click

from rwkv_engine.cli.each_line import generate_each
from rwkv_engine.cli.input import STANDARD_INPUT, decoded, display_name, read_text, reading
from rwkv_engine.cli.options import load, loading_options, model_option, sampling_options, stderr
from rwkv_engine.cli.record import record
from rwkv_engine.cli.streams import was_closed
from rwkv_engine.generation import TextStream
from rwkv_engine.structured import Format, JsonSchema, Regex


@click.command()
@click.argument("words", nargs=-1, metavar="[PROMPT]")
@click.option("--file", type=click.File("rb"), help="Read the prompt from a UTF-8 file; - is standard input.")
@click.option(
    "--each-line",
    is_flag=True,
    help="With --file or standard input: each line is a prompt of its own. They are continued together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each prompt.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --each-line --json: add the results to this file, and skip the prompts whose results it contains.",
)
@click.option(
    "--logprobs",
    type=int,
    metavar="N",
    help="With --json: for each token, report its log-probability and those of the N most likely ones.",
)
@click.option(
    "--json-schema",
    type=click.File("rb"),
    help="The text is JSON that the schema in this file describes. Needs the extra structured.",
)
@click.option("--regex", metavar="PATTERN", help="The text matches this regular expression as a whole.")
@model_option
@loading_options
@sampling_options()
def generate(
    words: tuple[str, ...],
    file: BinaryIO | None,
    each_line: bool,
    as_json: bool,
    resume: Path | None,
    logprobs: int | None,
    json_schema: BinaryIO | None,
    regex: str | None,
    model: str,
    revision: str | None,
    offline: bool,
    strategy: str,
    tokenizer: str | None,
    max_new_tokens: int,
    **sampling: Any,
) -> None:
    """Prints PROMPT and its continuation. Put a PROMPT of several words in quotes.

    Without PROMPT and --file, the prompt is read from standard input, unless that is a terminal. An empty prompt, or
    none, makes the model begin a text of its own. One newline at the end of a file is not part of the prompt.
    """
    if len(words) > 1:
        raise click.UsageError(f'PROMPT has {len(words)} parts; put it in quotes: "{" ".join(words)}"')
    prompts = _prompts(words[0] if words else None, file, each_line)
    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json")
    if resume is not None and not (each_line and as_json):
        raise click.UsageError("--resume needs --each-line and --json")
    sampling["allowed_tokens"] = _format(json_schema, regex)
    console = stderr()
    loaded = load(console, model, revision, offline, strategy, tokenizer)
    if each_line:
        generate_each(
            console,
            loaded,
            prompts,
            as_json,
            resume,
            max_new_tokens=max_new_tokens,
            logprobs=logprobs,
            **sampling,
        )
        return
    [prompt] = prompts
    stream = loaded.stream(prompt, max_new_tokens, logprobs=logprobs, **sampling)
    timed = _Timed(stream)
    if as_json:
        for _ in timed:
            pass
        values = record(loaded, prompt, stream.generated, stream.finish_reason, stream.n_prompt, stream.seed)
        click.echo(json.dumps(values, ensure_ascii=False))
    else:
        # The first piece is generated before the prompt is printed, so that notices, as about kernels, come first.
        click.echo(prompt + next(timed, ""), nl=False)
        for piece in timed:
            click.echo(piece, nl=False)
        click.echo()
    console.print(timed.report())


def _prompts(prompt: str | None, file: BinaryIO | None, each_line: bool) -> list[str]:
    if prompt is not None and file:
        raise click.UsageError("give PROMPT or --file, not both")
    if prompt is not None or not (file or _is_piped()):
        if each_line:
            raise click.UsageError("--each-line needs --file, or prompts on standard input")
        return [prompt or ""]
    text = (_content(file) if file else read_text(STANDARD_INPUT)).removesuffix("\n")  # an editor's, or echo's
    return text.split("\n") if each_line else [text]


def _format(json_schema: BinaryIO | None, regex: str | None) -> Format | None:
    if json_schema and regex is not None:
        raise click.UsageError("give --json-schema or --regex, not both")
    if json_schema:
        try:
            return JsonSchema(json.loads(_content(json_schema)))
        except (ValueError, RecursionError) as error:
            raise click.UsageError(f"--json-schema: {display_name(json_schema.name)} is not JSON: {error}") from error
    return None if regex is None else Regex(regex)


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file; not where it is a terminal, or was closed."""
    return not (sys.stdin.isatty() or was_closed(sys.stdin)) and sys.stdin.readable()


def _content(file: BinaryIO) -> str:
    name = STANDARD_INPUT if file is sys.stdin.buffer else file.name
    with reading(name):
        data = file.read()
    return decoded(display_name(name), data, is_beginning=True)


class _Timed:
    """Passes pieces on, and measures the time until the first one (prefill) and from there on (decoding)."""

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
            f"read {n_prompt} tokens in {first - self._started:.2f} s,"
            f" wrote {n_new} at {(n_new - n_first) / (self._last - first):.0f} tokens per second"
        )
