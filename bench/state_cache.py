"""Measures the time to the first token of a conversation's next turn, with and without a state cache.

    python -m bench.state_cache --json bench/results/state-cache-169m.json

Each round, a new conversation has a history, which was read, and an answer, which was generated; then comes a message.
`cold` reads all three without a cache. `memory` has a cache that saw the first turn: it reads the message, and in other
formats than int8 the answer again. `files` finds the state in the folder of an earlier cache, as after a restart.
`history alone` is how much longer the history itself takes with a cache in memory, and with one that writes files,
because states are kept.

Weights and tokens are random. All are measured in turn, in each round; the table has medians, with the lowest and
highest in brackets, and ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from rwkv_engine.benchmark.machine import facts
from rwkv_engine.benchmark.models import synthetic_model
from rwkv_engine.caching import StateCache
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import Strategy
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.models import Model
from rwkv_engine.runtime import load_model

TURNS = ((8, 8), (16, 16), (64, 24), (128, 32))  # tokens of the answer, and of the next message


def generated(scheduler: Scheduler, prompt: Sequence[int], n: int) -> list[int]:
    """The n tokens after a prompt."""
    request = Request(prompt, Sampler(SamplingParams(seed=0)), n)
    scheduler.add(request)
    scheduler.wait(lambda: request.finish_reason)
    if request.error:
        raise request.error
    return request.tokens


def seconds(scheduler: Scheduler, prompt: Sequence[int]) -> float:
    """The time to the first token after a prompt."""
    started = time.perf_counter()
    generated(scheduler, prompt, 1)
    return time.perf_counter() - started


def measure(model: Model, n_history: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds by what was measured, one for each round."""
    random_tokens = random.Random(0)
    found: dict[str, list[float]] = {}

    def tokens(n: int) -> list[int]:
        return [random_tokens.randrange(model.config.n_vocab) for _ in range(n)]

    def note(name: str, scheduler: Scheduler, prompt: Sequence[int]) -> None:
        found.setdefault(name, []).append(seconds(scheduler, prompt))

    plain = Scheduler(model)
    seconds(plain, tokens(300))  # the first call is slower
    for i in range(rounds):
        states = folder / str(i)
        history = tokens(n_history)
        memory, files = Scheduler(model, cache=StateCache()), Scheduler(model, cache=StateCache(folder=states))
        note("history cold", plain, history)
        note("history memory", memory, history)
        note("history files", files, history)
        for n_answer, n_message in TURNS:
            answer = generated(memory, history, n_answer)
            assert generated(files, history, n_answer) == answer
            turn = [*history, *answer, *tokens(n_message)]
            restarted = Scheduler(model, cache=StateCache(folder=states))
            name = f"{n_answer}+{n_message}"
            note(f"{name} cold", plain, turn)
            note(f"{name} memory", memory, turn)
            note(f"{name} files", restarted, turn)
    return found


def table(found: dict[str, list[float]], n_history: int) -> Table:
    """The times in milliseconds, and the ratios to those without a cache."""
    made = Table("prompt", "cache", title=f"time to the first token; history of {n_history} tokens", box=box.MARKDOWN)
    made.add_column("ms", justify="right")
    made.add_column("% of cold", justify="right")
    for name, values in found.items():
        prompt, kind = name.split()
        ratios = [100 * one / cold for one, cold in zip(values, found[f"{prompt} cold"], strict=True)]
        what = "history alone" if prompt == "history" else "history, answer {}, message {}".format(*prompt.split("+"))
        made.add_row(what, kind, spread([1000 * value for value in values]), "" if kind == "cold" else spread(ratios))
    return made


def spread(values: Sequence[float]) -> str:
    """The median, with the lowest and the highest in brackets."""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="169m", help="as for rwkv-engine bench")
    parser.add_argument("--strategy", default="cpu fp32i8")
    parser.add_argument("--history", type=int, default=4000, help="tokens of the first turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    strategy = Strategy.parse(options.strategy)
    with tempfile.TemporaryDirectory() as folder:
        given = synthetic_model(options.shape, 0.7, [strategy], Path(folder))
        model = load_model(Checkpoint.open(given.path), strategy)
        found = measure(model, options.history, options.rounds, Path(folder))
    Console(width=120).print(table(found, options.history))
    if options.json:
        result = {"machine": facts(), "model": given.facts, "strategy": str(strategy), "history": options.history}
        options.json.write_text(json.dumps({**result, "seconds": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
