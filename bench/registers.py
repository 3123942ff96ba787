"""Compares the products of the CPU kernels with what this processor's instructions do in registers, in one run.

    python -m bench.registers --shape 169m --shape 6,2048,12569

The first table has the multiplications a second of instructions whose operands are in registers, on all of torch's
threads (`registers.cpp`, compiled when this runs). The second one has those of products of 256 rows with matrices of a
layer, of a whole prompt of 256 tokens, and of a whole decoding step of 16 sequences, and their share of what the
instruction does that the kernels use there. Everything else that a prompt or a step needs counts as time in which
nothing is multiplied. Prompts multiply by the head once only, which is not counted.

Weights are random, and no value of the squared ReLU is zero. 6,2048,12569 is a quarter of the 1B5 shape, in which every
part takes a quarter of the memory and of the time. Each round measures the instructions again, so that changes of the
machine's speed are seen; shares are of its highest reading. Shown are medians, with the lowest and the highest in
brackets.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.before_after import spread
from rwkv_engine import RWKV, State
from rwkv_engine.benchmark import machine
from rwkv_engine.benchmark.instruments import seconds
from rwkv_engine.benchmark.models import parse_shape, write_synthetic
from rwkv_engine.benchmark.subject import random_ids
from rwkv_engine.core.config import Role
from rwkv_engine.native import cpu_kernels, ways
from rwkv_engine.native.toolkit import cxx_command
from rwkv_engine.runtime import Decoder

SHAPES = ("169m", "6,2048,12569")
STRATEGIES = ("cpu fp32", "cpu bf16", "cpu fp32i8")
ROWS, BATCH = 256, 16
Series = dict[str, list[float]]  # billions of multiplications a second of each round, by what is measured
Work = tuple[int, Callable[[], object]]  # the number of multiplications, and what does them


def compiled(folder: Path) -> Path:
    """The program that measures instructions."""
    program = folder / "registers"
    flags = ["-O2", "-std=c++20", "-mavx512f", "-pthread"]
    subprocess.run([*cxx_command(), *flags, Path(__file__).with_suffix(".cpp"), "-o", program], check=True)
    return program


def instructions(program: Path) -> dict[str, float]:
    """Billions of multiplications a second, by instruction."""
    output = subprocess.run([program, str(torch.get_num_threads())], check=True, capture_output=True, text=True).stdout
    return {name: float(rate) for name, rate in (line.split("\t") for line in output.splitlines())}


def used(strategy: str, few: bool) -> str:
    """The instruction in which the kernels of AVX-512 multiply, for `few` rows or for many."""
    level = cpu_kernels.status().level
    if "i8" in strategy:
        way, names = ways.int8_way(level), {"vector": "vpdpwssd"}
    elif "bf16" in strategy:
        way, names = ways.bfloat16_way(level), {"float32": "vfmadd231ps", "dot": "vdpbf16ps"}
    else:
        return "vfmadd231ps"
    if few:
        return next(iter(names.values()))
    return names.get(way, "in AMX tiles")


def work(model: RWKV) -> Iterator[tuple[str, Work]]:
    """What is measured."""
    config, layer = model.config, model.engine.model.layers[0]
    for name in ("ffn.receptance", "ffn.key", "ffn.value"):
        matrix = layer.get_submodule(name)
        x = torch.randn(1, ROWS, matrix.in_features)
        macs = ROWS * matrix.in_features * matrix.out_features
        yield f"{name}, {ROWS} rows of {matrix.in_features}", (macs, lambda matrix=matrix, x=x: matrix(x))
    sizes = {name: math.prod(spec.shape) for name, spec in config.tensors().items() if spec.role is not Role.VECTOR}
    head = sizes["head.weight"]
    weights = sum(sizes.values()) - sizes["emb.weight"]
    ids = random_ids(config.n_vocab, ROWS)
    yield f"prompt of {ROWS}", (ROWS * (weights - head), lambda: model.forward(ids))
    decoder = Decoder(model.engine.model)
    slots, tokens = decoder.pool.take(State.initial(config, BATCH)), torch.tensor(ids[:BATCH])
    yield f"step of {BATCH} sequences", (BATCH * weights, lambda: decoder.step(tokens, slots))


def typical_seconds(run: Callable[[], object]) -> float:
    """The median of a third of a second. The first times are longer, while the system moves threads to idle cores."""
    times = [seconds(run)]
    while len(times) < 3 or sum(times) < 1 / 3:
        times.append(seconds(run))
    return median(times)


def measure(program: Path, path: Path, strategy: str, rounds: int) -> tuple[Series, Series]:
    """The speeds of instructions and of our products; the first round, which warms up, is not among them."""
    model = RWKV.from_pretrained(path, strategy)
    peaks, rates = Series(), Series()
    for number in range(rounds + 1):
        print(f"\r{strategy}: round {number} ", end="", file=sys.stderr, flush=True)
        for name, rate in instructions(program).items() if number else ():
            peaks.setdefault(name, []).append(rate)
        for name, (macs, run) in work(model):
            rate = macs / typical_seconds(run) / 1e9
            if number:
                rates.setdefault(name, []).append(rate)
    print(file=sys.stderr)
    return peaks, rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help=f"may be repeated; by default {' and '.join(SHAPES)}")
    parser.add_argument("--strategy", action="append", help=f"may be repeated; by default {', '.join(STRATEGIES)}")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write every number here")
    args = parser.parse_args()
    if "avx512f" not in ways.processor_flags():
        parser.error("this processor has no AVX-512, whose instructions are measured")
    report: dict = {"machine": machine.facts(), "instructions": {}, "products": {}}
    table = Table("shape", "strategy", "product", "GMAC/s", "instruction", "share", box=box.MARKDOWN)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        program, path = compiled(Path(folder)), Path(folder) / "model.pth"
        for shape in args.shape or SHAPES:
            write_synthetic(path, parse_shape(shape), torch.float32, zeros=0)
            for strategy in args.strategy or STRATEGIES:
                peaks, rates = measure(program, path, strategy, args.rounds)
                report["products"].setdefault(shape, {})[strategy] = {"instructions": peaks, "products": rates}
                for name, values in peaks.items():
                    report["instructions"].setdefault(name, []).extend(values)
                for what, values in rates.items():
                    name = used(strategy, few=what.startswith("step"))
                    # Other programs can only slow an instruction down. Not all that are used are measured.
                    shares = [rate / max(peaks[name]) for rate in values if name in peaks]
                    shown = spread(shares, ".0%") if shares else ""
                    table.add_row(shape, strategy, what, spread(values, ",.0f"), name, shown)
    first = Table("in registers", "GMAC/s", box=box.MARKDOWN)
    for name, values in report["instructions"].items():
        first.add_row(name, spread(values, ",.0f"))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(report["machine"]["processor"], f"{report['machine']['threads']} threads", sep=", ")
    console.print(first, table)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
