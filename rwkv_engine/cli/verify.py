"""`rwkv-engine verify`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from rwkv_engine import verification
from rwkv_engine.cli.options import loading_options, progress_bar, stderr
from rwkv_engine.pipeline import locate


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of rows.")
@loading_options
def verify(
    model: str, as_json: bool, revision: str | None, offline: bool, strategy: str, tokenizer: str | None
) -> None:
    """Checks MODEL: reads and runs it, and compares it with transformers and the rwkv package if they are installed.

    MODEL is tales, a path or a hub id. Each check prints a row when it finishes: ok, FAILED, skipped, or info for a
    measurement that cannot be wrong. The exit code is 1 if a check FAILED.
    """
    console = stderr()
    path = locate(model, revision, offline=offline)
    bar = progress_bar(console, "{task.description}")
    task = bar.add_task("opening", total=None)
    checks = verification.verify(
        path,
        strategy,
        tokenizer,
        lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None),
    )
    found = []
    while True:
        with bar:  # hidden while a row is printed
            check = next(checks, None)
        if check is None:
            break
        found.append(check)
        if not as_json:
            click.echo(f"{check.name:<16} {check.verdict:<8} {check.what}")
    sound = all(check.verdict != "FAILED" for check in found)
    if as_json:
        click.echo(json.dumps({"sound": sound, "checks": [asdict(check) for check in found]}, ensure_ascii=False))
    if not sound:
        sys.exit(1)
