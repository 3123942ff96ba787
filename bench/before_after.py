"""Compares the speed of two source trees: decoding and prefill of both, measured alternately in one run.

    python -m bench.before_after ../released .

It uses random weights in the 169M shape under `cpu fp32` and `cpu fp32i8`, with half of the squared ReLU zero. Each
start loads the model once in a process of each tree; then rounds alternate between the two processes, and every second
round begins with the other one. The ratio new / old is computed within a round, so that a change of the machine's speed
affects both. The table shows medians over all starts and rounds, with the lowest and the highest value in brackets.

The processes use only `RWKV.from_pretrained` and `forward`, so any two trees that have these can be compared. The first
start may wait until a tree's kernels are compiled.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rwkv_engine.benchmark.models import parse_shape, write_synthetic

STRATEGIES = ("cpu fp32", "cpu fp32i8")
SETTLING = 0.05  # seconds until the threads of the other process sleep
Series = dict[str, list[float]]  # tokens per second by "old" and "new"


def serve(tree: str, path: str, strategy: str, prompt: str) -> None:
    """Runs in the process of one tree: loads the model, then answers "decode N" and "prefill N" with seconds.

    Its source is run by a Python of its own in the tree's folder, so it may use nothing of this file.
    """
    import sys
    import time
    from pathlib import Path

    import torch

    import rwkv_engine

    found = Path(rwkv_engine.__file__).resolve().parent.parent
    if found != Path(tree):
        sys.exit(f"{tree}: expected rwkv_engine there, imported it from {found}")
    torch.set_grad_enabled(False)
    model = rwkv_engine.RWKV.from_pretrained(path, strategy)
    ids = torch.randint(model.config.n_vocab, (int(prompt),), generator=torch.Generator().manual_seed(1)).tolist()
    _, state = model.forward(ids)
    print("ready", flush=True)
    for line in sys.stdin:
        what, n = line.split()
        started = time.perf_counter()
        if what == "prefill":
            model.forward(ids[: int(n)])
        else:
            for i in range(int(n)):
                _, state = model.forward([ids[i % len(ids)]], state)
        print(time.perf_counter() - started, flush=True)


class Tree:
    """A running process of one source tree."""

    def __init__(self, tree: Path, path: Path, strategy: str, prompt: int):
        code = f"{inspect.getsource(serve)}\nserve{(str(tree), str(path), strategy, str(prompt))}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self.process.stdout.readline() != "ready\n":
            sys.exit(f"{tree}: the process with {strategy} ended with code {self.process.wait()}")

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def rate(self, what: str, tokens: int) -> float:
        """Tokens per second."""
        time.sleep(SETTLING)
        self.process.stdin.write(f"{what} {tokens}\n")
        self.process.stdin.flush()
        return tokens / float(self.process.stdout.readline())


def measure(
    trees: dict[str, Path], path: Path, strategy: str, sizes: dict[str, int], starts: int, rounds: int
) -> dict[str, Series]:
    """Tokens per second of both trees, by measurement; equal indices are of the same round."""
    found: dict[str, Series] = {what: {"old": [], "new": []} for what in sizes}
    for start in range(starts):
        with ExitStack() as ended:
            workers = {
                name: ended.enter_context(Tree(tree, path, strategy, sizes["prefill"])) for name, tree in trees.items()
            }
            for number in range(rounds + 1):  # the first one warms up
                print(f"\r{strategy}: start {start + 1}, round {number} ", end="", file=sys.stderr, flush=True)
                names = list(workers)[:: -1 if number % 2 else 1]
                for what, tokens in sizes.items():
                    rates = {name: workers[name].rate(what, tokens) for name in names}
                    for name, rate in rates.items() if number else ():
                        found[what][name].append(rate)
    print(file=sys.stderr)
    return found


def spread(values: list[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="the folder of a source tree, which contains rwkv_engine")
    parser.add_argument("new", type=Path)
    parser.add_argument("--shape", default="169m", help="as in rwkv-engine bench")
    parser.add_argument("--strategy", action="append", help=f"may be repeated; by default {', '.join(STRATEGIES)}")
    parser.add_argument("--starts", type=int, default=3, help="processes of each tree (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements in each process (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=32, help="tokens of a measurement (default: %(default)s)")
    parser.add_argument("--prefill", type=int, default=256, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write every number here")
    args = parser.parse_args()
    trees = {"old": args.old.resolve(), "new": args.new.resolve()}
    if missing := [tree for tree in trees.values() if not (tree / "rwkv_engine").is_dir()]:
        parser.error(f"{missing[0]}: there is no rwkv_engine in it")
    sizes = {"decode": args.decode, "prefill": args.prefill}
    report = {"shape": args.shape, "sizes": sizes, "tokens_per_second": {}}
    table = Table("strategy", "tok/s", "old", "new", "new / old", box=box.MARKDOWN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        write_synthetic(path, parse_shape(args.shape), torch.float32, zeros=0.5)
        for strategy in args.strategy or STRATEGIES:
            found = measure(trees, path, strategy, sizes, args.starts, args.rounds)
            report["tokens_per_second"][strategy] = found
            for what, rates in found.items():
                ratios = [new / old for old, new in zip(rates["old"], rates["new"], strict=True)]
                shown = [spread(rates[name], ",.1f") for name in trees]
                table.add_row(strategy, f"{what} {sizes[what]}", *shown, spread(ratios, ".3f"))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
