"""`rwkv-engine eval`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console

from rwkv_engine.cli.input import read_text
from rwkv_engine.cli.options import load, loading_options, model_option, progress_bar, stderr
from rwkv_engine.evaluation import compare, evaluate, text_ids, write
from rwkv_engine.pipeline import RWKV
from rwkv_engine.progress import Progress

Result = TypeVar("Result")
Report = dict[str, str | int | float]


@click.command("eval")
@click.option("--text", metavar="FILE", help="The text, UTF-8; - is standard input.")
@click.option("--against", metavar="REFERENCE", help="Compare with the same model under this strategy, the reference.")
@click.option(
    "--self",
    "n_self",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --against: compare on N tokens that the reference generates.",
)
@click.option("--seed", default=0, show_default=True, help="With --self: seed of the generated text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of rows.")
@model_option
@loading_options
def evaluate_text(
    text: str | None,
    against: str | None,
    n_self: int | None,
    seed: int,
    as_json: bool,
    model: str,
    revision: str | None,
    offline: bool,
    strategy: str,
    tokenizer: str | None,
) -> None:
    """Measures how well a model predicts a text, or how far the predictions of two strategies differ.

    --text FILE alone measures the cross-entropy, in nats per byte and per token. The whole file is one sequence. Its
    first token is predicted from the tokenizer's end-of-text token; without such a token, it is not counted.

    --against REFERENCE measures the Kullback-Leibler divergence KL(reference || strategy), in nats per token, on
    --text FILE or on N tokens that the reference generates at temperature 1 (--self N).
    """
    if text and n_self:
        raise click.UsageError("give --text FILE or --self N, not both")
    if not text and not n_self:
        raise click.UsageError(
            "give --text FILE, or --against STRATEGY --self N for a text that the model generates itself"
        )
    if n_self and not against:
        raise click.UsageError("--self needs --against: over its own text a model only measures its own entropy")
    content = read_text(text) if text else ""
    console = stderr()
    first = load(console, model, revision, offline, against or strategy, tokenizer)
    first.forward([0])  # compiles kernels before time is measured
    if not against:
        report = _score(console, first, content)
    else:
        ids = _timed(console, "writing", lambda p: write(first, n_self, seed, p))[0] if n_self else None
        ids = ids or text_ids(first, content)
        # From the path of the first one, for a branch of a hub id may have moved in the meantime.
        tested = load(console, str(first.source), None, offline, strategy, tokenizer)
        report = _divergence(console, first, tested, ids)
    if as_json:
        click.echo(json.dumps({name.replace(" ", "_").lower(): value for name, value in report.items()}))
    else:
        for name, value in report.items():
            click.echo(f"{name:<25} {_shown(value)}")


def _score(console: Console, model: RWKV, text: str) -> Report:
    score, seconds = _timed(console, "reading", lambda progress: evaluate(model, text, progress))
    return {
        "model": str(model.source),
        "strategy": str(model.strategy),
        "nats per byte": score.nats_per_byte,
        "nats per token": score.nats_per_token,
        "perplexity per token": score.perplexity,
        "bits per byte": score.bits_per_byte,
        "tokens": score.n_tokens,
        "bytes": score.n_bytes,
        "tokens per second": score.n_tokens / seconds,
    }


def _divergence(console: Console, reference: RWKV, tested: RWKV, ids: list[int]) -> Report:
    found, seconds = _timed(console, "comparing", lambda progress: compare(reference, tested, ids, progress))
    return {
        "model": str(tested.source),
        "strategy": str(tested.strategy),
        "reference": str(reference.strategy),
        "mean KL": found.mean,
        "KL 99th percentile": found.percentile_99,
        "largest KL": found.maximum,
        "same most likely token": found.agreement,
        "nats per token": found.tested_nats / found.n_tokens,
        "reference nats per token": found.reference_nats / found.n_tokens,
        "tokens": found.n_tokens,
        "tokens per second": found.n_tokens / seconds,
    }


def _timed(console: Console, what: str, run: Callable[[Progress], Result]) -> tuple[Result, float]:
    """The result and the seconds it took, with a progress bar."""
    started = time.perf_counter()
    with progress_bar(console, what) as bar:
        task = bar.add_task(what, total=None)
        result = run(lambda done, total: bar.update(task, completed=done, total=total))
    return result, time.perf_counter() - started


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
