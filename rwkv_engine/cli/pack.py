"""`rwkv-engine pack`."""

from __future__ import annotations

from pathlib import Path

import click

from rwkv_engine.cli.options import hub_options, progress_bar, stderr
from rwkv_engine.convert import pack as packing
from rwkv_engine.core.strategy import DTYPES
from rwkv_engine.pipeline import locate


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write, NAME.safetensors; an existing one is replaced.",
)
@click.option("--strategy", help="Pack each layer in the precision that this strategy gives it; not with --dtype.")
@click.option(
    "--dtype", type=click.Choice(list(DTYPES)), help="Pack all matrices in this precision; by default that of MODEL."
)
@hub_options
def pack(
    model: str, output: Path, strategy: str | None, dtype: str | None, revision: str | None, offline: bool
) -> None:
    """Writes MODEL as a packed file, which loads almost at once, because it is memory-mapped.

    A packed file is made for one precision. It also loads under strategies of other precisions, but then its weights
    are converted, which takes time and memory.
    """
    if strategy and dtype:
        raise click.UsageError("give --strategy or --dtype, not both")
    console = stderr()
    path = locate(model, revision, offline=offline)
    with progress_bar(console, "packing") as bar:
        task = bar.add_task("packing", total=None)
        packed = packing.pack(
            path,
            output,
            f"cpu {dtype}" if dtype else strategy,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"{output}: {output.stat().st_size / 1e6:,.1f} MB, {packed}")
