"""`rwkv-engine generate`."""

from __future__ import annotations

import time

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rwkv_engine.pipeline import RWKV, locate


@click.command()
@click.argument("prompt", default="")
@click.option("--model", default="tales", show_default=True, help="tales, a .pth, .safetensors, directory or hub id.")
@click.option("--revision", help="Of a hub id: branch, tag or commit.")
@click.option("--offline", is_flag=True, help="Take a hub id from the hub cache, ask no server.")
@click.option("--strategy", default="cpu fp32", show_default=True, help="Where the model runs, in what precision.")
@click.option("--tokenizer", help="Tokenizer file; by default looked for beside the model.")
@click.option("--max-new-tokens", default=128, show_default=True, help="At most so many tokens.")
@click.option("--temperature", default=1.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", default=0, show_default=True, help="Only the k likeliest tokens; 0 is off.")
@click.option("--top-p", default=1.0, show_default=True, help="Only the likeliest tokens that sum to p; 1.0 is off.")
@click.option("--seed", type=int, help="The same seed writes the same text; by default each run differs.")
def generate(
    prompt: str,
    model: str,
    revision: str | None,
    offline: bool,
    strategy: str,
    tokenizer: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
) -> None:
    """Continues PROMPT and prints it with its continuation."""
    path = locate(model, revision, offline=offline)  # before the bar below: a download has bars of its own
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("loading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=None)
        loaded = RWKV.from_pretrained(
            path, strategy, tokenizer, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    tokens = _Counted()
    pieces = loaded.stream(
        prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, on_token=tokens.count
    )
    first = next(pieces, "")  # what is said on the way, about kernels, comes before the text and not inside it
    click.echo(prompt + first, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
    console.print(tokens.report(len(loaded.encode_prompt(prompt))))


class _Counted:
    """Counts tokens and times them: the prompt up to the first, the writing from there on."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def count(self, token: int) -> None:
        self.times.append(time.perf_counter())

    def report(self, n_prompt: int) -> str:
        n_new = len(self.times) - 1
        if n_new < 2:
            return f"read {n_prompt} tokens, wrote {n_new}"
        prefill, decode = self.times[1] - self.times[0], self.times[-1] - self.times[1]
        return (
            f"read {n_prompt} tokens in {prefill:.2f} s (first call included),"
            f" wrote {n_new} at {(n_new - 1) / decode:.0f} tok/s"
        )
