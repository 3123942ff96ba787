"""`rwkv-engine quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from rwkv_engine.checkpoints.files import stored_bytes
from rwkv_engine.cli.options import hub_options, progress_bar, stderr
from rwkv_engine.convert import pack as packing
from rwkv_engine.core.strategy import DTYPES
from rwkv_engine.pipeline import locate
from rwkv_engine.runtime.mixed_formats import BUDGET


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write, NAME.safetensors; an existing one is replaced.",
)
@click.option(
    "--format",
    "weights",
    type=click.Choice(packing.FORMATS),
    default="i8",
    show_default=True,
    help="Weight format of the matrices.",
)
@click.option(
    "--embedding", type=click.Choice(list(DTYPES)), help="Precision of the embedding; by default that of MODEL."
)
@click.option(
    "--int8-budget",
    type=click.FloatRange(0, 1),
    default=BUDGET,
    show_default=True,
    help="With i4: what the matrices that stay int8 may add to the bytes, as a share of those of int4. 0 keeps none.",
)
@hub_options
def quantize(
    model: str,
    output: Path,
    weights: str,
    embedding: str | None,
    int8_budget: float,
    revision: str | None,
    offline: bool,
) -> None:
    """Writes MODEL as a packed file with its matrices quantised to 8-bit or 4-bit integers.

    Run it under a strategy with i8 or i4, such as "cpu fp32i8" or "cuda fp16i4"; other strategies convert the weights
    while loading. With i4, the matrices that suffer most stay int8, within a budget of bytes.
    """
    console = stderr()
    path = locate(model, revision, offline=offline)
    before = stored_bytes(path)  # before it is written, for the output may be the same file
    with progress_bar(console, "quantizing") as bar:
        task = bar.add_task("quantizing", total=None)
        packed = packing.quantize(
            path,
            output,
            weights,
            embedding,
            lambda done, total: bar.update(task, completed=done, total=total),
            int8_budget=int8_budget,
        )
    after = output.stat().st_size
    console.print(f"{output}: {after / 1e6:,.1f} MB, {packed}; {before / 1e6:,.1f} MB before")
