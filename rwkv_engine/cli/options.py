"""Options that several commands share, and how a command loads a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rwkv_engine.pipeline import RWKV, locate

Command = TypeVar("Command", bound=Callable[..., Any])


def progress_bar(console: Console, what: str, auto_refresh: bool = True) -> Progress:
    """A progress bar that disappears when the work is done; it is not shown where the console is not a terminal."""
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    hidden = not console.is_terminal
    return Progress(*columns, console=console, transient=True, disable=hidden, auto_refresh=auto_refresh)


def stderr() -> Console:
    """The console for everything that is not a result."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator of several options, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


LOCATION_HELP = "tales (the embedded model), a .pth or .safetensors file, a directory, or a hub id."
model_option = click.option("--model", default="tales", show_default=True, help=LOCATION_HELP)
hub_options = together(
    click.option("--revision", help="Branch, tag or commit of a model on the hub."),
    click.option(
        "--offline", is_flag=True, help="Take hub ids from the cache of earlier downloads; contact no server."
    ),
)
loading_options = together(
    hub_options,
    click.option(
        "--strategy",
        default="cpu fp32",
        show_default=True,
        help='Device and precision, such as "cpu bf16", "cpu fp32i8", "cpu fp32i4", "cuda fp16"; or auto.',
    ),
    click.option("--tokenizer", help="Tokenizer file; by default searched next to the model and in the hub cache."),
)


def load(
    console: Console, model: str, revision: str | None, offline: bool, strategy: str, tokenizer: str | None
) -> RWKV:
    """Loads a model with a progress bar."""
    path = locate(model, revision, offline=offline)  # before the bar below, for a download shows its own
    with progress_bar(console, "loading") as bar:
        task = bar.add_task("loading", total=None)
        return RWKV.from_pretrained(
            path, strategy, tokenizer, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


def _biases(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[int, float]:
    biases = {}
    for value in values:
        token, _, bias = value.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise click.BadParameter(f"{value!r}: expected ID=BIAS, such as 187=-2.5") from None
    return biases


def sampling_options(**defaults: Any) -> Callable[[Command], Command]:
    """The options of `SamplingParams`, and `--max-new-tokens`; `defaults` are those of a command."""
    values = {
        "max_new_tokens": 128,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "penalty_decay": 1.0,
        "drafts": 0,
    } | defaults

    def number(name: str, help: str) -> Callable[[Command], Command]:
        return click.option(f"--{name.replace('_', '-')}", default=values[name], show_default=True, help=help)

    return together(
        number("max_new_tokens", "The largest number of tokens to generate."),
        number("temperature", "Divides the logits; 0 always takes the most likely token."),
        number("top_k", "Keep only the k most likely tokens; 0 is off."),
        number("top_p", "Keep the fewest most likely tokens whose probabilities sum to at least p; 1.0 is off."),
        number("min_p", "Keep tokens at least p times as likely as the most likely one; 0 is off."),
        number("presence_penalty", "Subtracted from the logit of every token that was generated before."),
        number("frequency_penalty", "Subtracted from a token's logit once for each time it was generated before."),
        number("penalty_decay", "Frequency penalties shrink by this factor with every new token; 1.0 is off."),
        number("drafts", "Guess up to so many tokens ahead, which makes texts that repeat faster; 0 is off."),
        click.option(
            "--logit-bias",
            multiple=True,
            callback=_biases,
            metavar="ID=BIAS",
            help="Add BIAS to the logit of the token with this id; may be repeated.",
        ),
        click.option(
            "--ban",
            "banned_tokens",
            type=int,
            multiple=True,
            metavar="ID",
            help="Never generate the token with this id; may be repeated.",
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the text before this string; may be repeated."),
        click.option("--seed", type=int, help="The same seed generates the same text; by default each run differs."),
        click.option(
            "--compat",
            type=click.Choice(["rwkv"]),
            help="Sample in the order of the rwkv package: top-p before the temperature.",
        ),
    )
