"""The options of `rwkv-engine bench --serve`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click
from click.core import ParameterSource

from rwkv_engine.benchmark.serve_report import ServeSettings
from rwkv_engine.cli.options import Command, together

ONLY_SERVE = ("rate", "requests", "prompts", "answers", "seed")
NOT_SERVE = ("starts", "decode", "prefill", "batch", "position")


def _range(context: click.Context, option: click.Parameter, value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise click.BadParameter(f"{value!r}: expected a range of tokens such as {option.default}, or one number")
    return low, high


_options: Callable[[Callable[..., None]], Callable[..., None]] = together(
    click.option(
        "--serve",
        is_flag=True,
        help="Measure requests as they arrive instead: run together, and one by one as by --compare rwkv.",
    ),
    click.option(
        "--rate",
        type=click.FloatRange(0, min_open=True),
        default=4.0,
        show_default=True,
        help="With --serve: requests per second, which arrive at random.",
    ),
    click.option(
        "--requests", type=click.IntRange(1), default=48, show_default=True, help="With --serve: number of requests."
    ),
    click.option(
        "--prompts", default="16-256", show_default=True, callback=_range, help="With --serve: tokens of prompts."
    ),
    click.option(
        "--answers", default="16-128", show_default=True, callback=_range, help="With --serve: tokens of answers."
    ),
    click.option(
        "--seed", type=click.IntRange(0), default=1, show_default=True, help="With --serve: of times and lengths."
    ),
)


def serve_options(command: Command) -> Command:
    """Adds the options, which the command gets as settings named `serving`; None without `--serve`."""

    @wraps(command)
    def with_settings(serve: bool, **others: Any) -> None:
        own = {name: others.pop(name) for name in ONLY_SERVE}
        _refuse(NOT_SERVE if serve else ONLY_SERVE, "is not for --serve" if serve else "needs --serve")
        compared = others["compare"]
        if serve and set(compared) - {"rwkv"}:
            raise click.UsageError(f"--serve compares with rwkv alone, got --compare {','.join(compared)}")
        command(**others, serving=ServeSettings(**own, rounds=others["rounds"] or 1) if serve else None)

    return _options(with_settings)  # type: ignore[return-value]


def _refuse(names: Sequence[str], why: str) -> None:
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} {why}")
