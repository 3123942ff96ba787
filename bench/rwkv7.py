"""Compares the decoding of RWKV-7 with the `rwkv` package, on random weights.

    python -m bench.rwkv7 --shape rwkv7-0.4b

Each round starts a process for each engine in turn, which loads the weights, decodes some tokens to warm up, and then
is timed. The package reads its switches when it is imported, and computes in float32; its threads wait actively, which
is best for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rwkv_engine.benchmark.machine import facts
from rwkv_engine.benchmark.models import parse_shape, write_synthetic

PACKAGE = "rwkv, cpu fp32"
DEFAULT = [f"cpu {weights}, batch {batch}" for weights in ("fp32", "fp32i8", "bf16i8") for batch in (1, 16)]
SWITCHES = {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}


def one_token(engine: str, path: Path) -> Callable[[], object]:
    """A function that decodes one token."""
    if engine == PACKAGE:
        from rwkv.model import RWKV as Package

        package = Package(str(path.with_suffix("")), "cpu fp32")
        state = None

        def by_the_package() -> object:
            nonlocal state
            logits, state = package.forward([7], state)
            return logits

        return by_the_package
    from rwkv_engine import Checkpoint, Strategy
    from rwkv_engine.runtime import Engine, load_model
    from rwkv_engine.runtime.decoder import Decoder

    strategy, batch = engine.split(", batch ")
    model = load_model(Checkpoint.open(path), Strategy.parse(strategy))
    decoder = Decoder(model)
    slots = decoder.pool.take(Engine(model).initial_state(int(batch)))
    tokens = torch.full((int(batch),), 7)
    return lambda: decoder.step(tokens, slots)


def measure(engine: str, path: Path, tokens: int) -> float:
    """Steps per second, in this process."""
    step = one_token(engine, path)
    with torch.no_grad():
        for _ in range(3):
            step()
        begin = time.perf_counter()
        for _ in range(tokens):
            step()
    return tokens / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="rwkv7-0.4b")
    parser.add_argument("--ffn-zeros", type=float, default=0.0, help="share of zeros in the squared ReLU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--engine", action="append", help="STRATEGY, batch B; may be repeated")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("ENGINE", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure(args.measure[0], Path(args.measure[1]), args.tokens))
        return
    engines = [
        PACKAGE,
        *(args.engine or [f"cpu {f}, batch {b}" for f in ("fp32", "fp32i8", "bf16i8") for b in (1, 16)]),
    ]
    rounds: dict[str, list[float]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        write_synthetic(path, parse_shape(args.shape), torch.float32, args.ffn_zeros)
        for _ in range(args.rounds):
            for engine in engines:
                command = [sys.executable, "-m", "bench.rwkv7", "--tokens", str(args.tokens), "--measure", engine, path]
                run = subprocess.run(
                    command,
                    env=os.environ | SWITCHES | {"OMP_WAIT_POLICY": "ACTIVE" if engine == PACKAGE else "PASSIVE"},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                rounds[engine].append(float(run.stdout.split()[-1]))
    table = Table(box=box.MARKDOWN, title=f"{args.shape}, {args.ffn_zeros:.0%} zeros; steps a second, median of rounds")
    for column in ("engine", "steps/s", "of the package"):
        table.add_column(column, justify="right" if column != "engine" else "left")
    for engine, values in rounds.items():
        ratio = median(value / package for value, package in zip(values, rounds[PACKAGE], strict=True))
        table.add_row(engine, f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})", f"{ratio:.2f} x")
    Console().print(table)
    if args.json:
        results = {"machine": facts(), "shape": args.shape, "ffn_zeros": args.ffn_zeros, "steps_per_second": rounds}
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
