"""`rwkv-engine bench`."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rwkv_engine.benchmark import serve_report, serve_table
from rwkv_engine.benchmark.bench import bench
from rwkv_engine.benchmark.lineup import EngineSpec, check_memory, lineup, runnable
from rwkv_engine.benchmark.models import SHAPES, BenchModel, given_model, parse_shape, synthetic_model
from rwkv_engine.benchmark.report import Report, as_json
from rwkv_engine.benchmark.rounds import Settings
from rwkv_engine.benchmark.serve import serve
from rwkv_engine.benchmark.serve_report import ServeReport, ServeSettings
from rwkv_engine.benchmark.table import headline, tables
from rwkv_engine.cli.bench_serve import serve_options
from rwkv_engine.cli.options import hub_options, progress_bar, stderr
from rwkv_engine.convert import pack as packing
from rwkv_engine.errors import RequestError
from rwkv_engine.pipeline import locate
from rwkv_engine.progress import StageProgress
from rwkv_engine.storage.atomic import file_problem, replace_atomically
from rwkv_engine.verification.baselines import BASELINES

ROUNDS = 5
FILE_WIDTH = 200  # of tables, in columns, where there is no terminal to fit them to


def _numbers(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    if value == "none":
        return ()
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise click.BadParameter(f"{value!r}: expected positive numbers, each once, such as {option.default}, or none")
    return numbers


def _peers(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(value.split(","))) if value else ()
    if unknown := [name for name in names if name not in BASELINES]:
        raise click.BadParameter(f"{unknown[0]!r}: expected one or more of {', '.join(BASELINES)}")
    return names


def _output(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """Checks where a file is to be written before minutes of measuring."""
    if value and (problem := file_problem(value)):
        raise click.BadParameter(f"{value}: {problem}")
    return value


@click.command("bench")
@click.argument("model", required=False)
@click.option(
    "--shape",
    help=f"Random weights instead of MODEL: {', '.join(SHAPES)}, or LAYERS,WIDTH,VOCABULARY. By default 169m.",
)
@click.option(
    "--ffn-zeros",
    type=click.FloatRange(0, 1),
    help="With --shape: share of zeros in the squared ReLU; 0 by default, about 0.9 in trained models.",
)
@click.option("--strategy", multiple=True, help='Strategy to measure; may be repeated. By default "cpu fp32".')
@click.option("--packed", is_flag=True, help="Pack the model for each strategy first, and run the packed file.")
@click.option(
    "--compare",
    callback=_peers,
    metavar="PEERS",
    help=f"Measure other programs too: {','.join(BASELINES)} or one of them.",
)
@click.option(
    "--compare-strategy", help="Strategy of the other programs; by default each --strategy, without i8 and i4."
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Number of rounds; each measures every engine once. By default 5, with --serve 1.",
)
@click.option(
    "--starts",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of new processes that measure the time to the first token.",
)
@click.option(
    "--decode", type=click.IntRange(1), default=32, show_default=True, help="Number of tokens decoded in a round."
)
@click.option(
    "--prefill", default="16,256,1024", show_default=True, callback=_numbers, help="Prompt lengths to measure, or none."
)
@click.option(
    "--batch", default="1,2,4,8,16,32,64", show_default=True, callback=_numbers, help="Batch sizes to measure, or none."
)
@click.option(
    "--position",
    type=click.IntRange(101),
    help="Also measure decoding after this many tokens, and compare it with position 100; slow.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    callback=_output,
    help="Write all measurements to this file.",
)
@click.option("--plot", type=click.Path(path_type=Path), callback=_output, help="Draw a chart in this file, NAME.png.")
@serve_options
@hub_options
def bench_command(
    model: str | None,
    shape: str | None,
    ffn_zeros: float | None,
    strategy: tuple[str, ...],
    packed: bool,
    compare: tuple[str, ...],
    compare_strategy: str | None,
    rounds: int | None,
    starts: int,
    decode: int,
    prefill: tuple[int, ...],
    batch: tuple[int, ...],
    position: int | None,
    json_file: Path | None,
    plot: Path | None,
    revision: str | None,
    offline: bool,
    serving: ServeSettings | None,
) -> None:
    """Measures speed and memory use of strategies, compared with the memory bandwidth and with other programs.

    MODEL is tales, a path or a hub id. Each engine (a strategy or another program) runs in its own process, in
    interleaved rounds. With --serve, requests arrive at random and are run together, and one by one; it shows how long
    they wait for their tokens.

    pip install 'rwkv-engine[bench]' installs the other programs and what --plot needs.
    """
    if model and shape:
        raise click.UsageError("give MODEL or --shape, not both")
    if model and ffn_zeros is not None:
        raise click.UsageError("--ffn-zeros is for random weights (--shape); MODEL has its own")
    if compare_strategy and not compare:
        raise click.UsageError("--compare-strategy needs --compare")
    if plot:
        _check_plot(plot)
    console = stderr()
    settings = Settings(rounds or ROUNDS, starts, decode, prefill, batch, position or 0)
    bar = progress_bar(console, "{task.description}", auto_refresh=False)
    task = bar.add_task("", total=None)

    def tell(what: str, done: int, total: int) -> None:
        """Redraws the bar only here: one that refreshes itself would take time from the measurement."""
        bar.update(task, description=what, completed=done, total=total or None)
        bar.refresh()

    with ExitStack() as cleaned:
        _end_as_by_interrupt(cleaned)
        path = locate(model, revision, offline=offline) if model else None
        folder = Path(cleaned.enter_context(tempfile.TemporaryDirectory(prefix="rwkv-engine-bench.")))
        cleaned.enter_context(bar)
        given = given_model(path, str(model)) if path else None
        config = given.config if given else parse_shape(shape or "169m")
        strategies = runnable(strategy or ("cpu fp32",), config)
        # What cannot run is refused before gigabytes are written.
        specs, beside = lineup(strategies, compare, compare_strategy, path or folder / "model.pth", config)
        check_memory(specs, config)
        if not given:
            tell("making a model of random weights", 0, 0)
            given = synthetic_model(shape or "169m", ffn_zeros or 0.0, [spec.strategy for spec in specs], folder)
        if packed:
            specs = [_packed(spec, i, given, folder, tell) for i, spec in enumerate(specs)]
        if serving:
            served = serve(given, specs, serving, tell)
        else:
            report = bench(given, specs, beside, settings, tell)
    if serving:
        _show(serve_table.headline(served), serve_table.tables(served))
        _write(json_file, serve_report.as_json(served), indent=None)
        _draw(plot, "serve_plot", served)
    else:
        _show(headline(report), tables(report))
        _write(json_file, as_json(report))
        _draw(plot, "plot", report)


def _check_plot(file: Path) -> None:
    if file.suffix != ".png":
        raise click.UsageError(f"--plot {file}: expected a name that ends in .png")
    if find_spec("matplotlib") is None:
        raise RequestError("plot: matplotlib is not installed; pip install 'rwkv-engine[bench]'")


def _packed(spec: EngineSpec, index: int, model: BenchModel, folder: Path, tell: StageProgress) -> EngineSpec:
    """Our engine with a packed file; other programs cannot read one."""
    if spec.engine != "rwkv_engine":
        return spec
    file = folder / f"packed-{index}.safetensors"
    packing.pack(model.path, file, str(spec.strategy), partial(tell, f"packing for {spec.strategy}"))
    return replace(spec, path=file)


def _end_as_by_interrupt(cleaned: ExitStack) -> None:
    """Handles SIGTERM as Ctrl-C, so that a model of many gigabytes is not left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    cleaned.callback(signal.signal, signal.SIGTERM, before)


def _show(lines: Iterable[str], tables: Iterable[Table]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    for table in tables:
        console.print(table)


def _write(file: Path | None, report: dict[str, Any], indent: int | None = 1) -> None:
    if file:
        with replace_atomically(file) as temporary:
            temporary.write_text(json.dumps(report, indent=indent) + "\n", encoding="utf-8")


def _draw(file: Path | None, module: str, report: Report | ServeReport) -> None:
    if file:
        drawing = import_module(f"rwkv_engine.benchmark.{module}")  # matplotlib takes a second
        with replace_atomically(file) as temporary:
            drawing.draw(report, temporary)
