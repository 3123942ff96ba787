"""Measures what many short texts gain from sharing passes over the weights, and what the scheduler and sampling cost.

    python -m bench.many --tokenizer 20B_tokenizer.json

Two comparisons, each in turn, with random weights and random prompts:

- `RWKV.generate` with all prompts against a part of them one after the other;
- 16 requests of a scheduler, sampled with temperature 0.8 and top-p 0.9, against the same number of steps of 16 rows
  that are neither scheduled nor sampled.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rwkv_engine import RWKV
from rwkv_engine.benchmark.machine import facts
from rwkv_engine.benchmark.models import parse_shape, write_synthetic
from rwkv_engine.core.state import State
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.runtime.decoder import Decoder

SAMPLING = {"temperature": 0.8, "top_p": 0.9}


def prompts(n: int, shortest: int, longest: int) -> list[list[int]]:
    """Random prompts, the same in every run."""
    rng = random.Random(1)
    return [[rng.randrange(1000, 50000) for _ in range(rng.randint(shortest, longest))] for _ in range(n)]


def short_texts(model: RWKV, texts: list[str], alone: int, tokens: int) -> tuple[float, float]:
    """Texts per second: all of them together, and the first `alone` of them one after the other."""
    options = {**SAMPLING, "max_new_tokens": tokens, "seed": 1, "stop_tokens": ()}
    begin = time.perf_counter()
    together = model.generate(texts, **options)
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    apart = [model.generate(prompt, **options) for prompt in texts[:alone]]
    seconds_alone = time.perf_counter() - begin
    if together[:alone] != apart:
        raise SystemExit("texts differ from those that were generated alone")
    return len(texts) / seconds, alone / seconds_alone


def steps_per_second(model: RWKV, ids: list[list[int]], n: int) -> tuple[float, float]:
    """Steps of 16 texts per second: those of a scheduler, which samples, and bare ones."""
    core, scheduler = model.engine.model, Scheduler(model.engine.model)
    requests = [Request(prompt, Sampler(SamplingParams(**SAMPLING, seed=i)), n + 1) for i, prompt in enumerate(ids)]
    for request in requests:
        request.wanted = 1
        scheduler.add(request)
    scheduler.wait(lambda: all(request.tokens for request in requests))
    for request in requests:
        request.wanted = float("inf")
    begin = time.perf_counter()
    scheduler.wait(lambda: all(request.finish_reason for request in requests))
    scheduled = n / (time.perf_counter() - begin)

    decoder = Decoder(core)
    slots = decoder.pool.take(State.initial(core.config, len(ids)))
    tokens = torch.tensor([prompt[0] for prompt in ids])
    decoder.step(tokens, slots)
    begin = time.perf_counter()
    for _ in range(n):
        decoder.step(tokens, slots)
    return scheduled, n / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json of the 20B tokenizer")
    parser.add_argument("--shape", default="169m")
    parser.add_argument("--strategy", default="cpu fp32i8")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=50, help="how many of them are generated one after the other too")
    parser.add_argument("--prompt", type=int, nargs=2, default=(8, 23), metavar=("SHORTEST", "LONGEST"))
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--steps", type=int, default=100, help="steps of 16 texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        write_synthetic(path, parse_shape(args.shape), torch.float32, zeros=0.5)
        model = RWKV.from_pretrained(path, args.strategy, args.tokenizer)
    ids = prompts(args.texts, *args.prompt)
    texts = [model.tokenizer.decode(prompt) for prompt in ids]
    short_texts(model, texts[:MOST_ROWS], 1, args.tokens)  # warms up
    results: dict[str, list[tuple[float, float]]] = {"short texts": [], "steps of 16 texts": []}
    for _ in range(args.rounds):
        results["steps of 16 texts"].append(steps_per_second(model, ids[:MOST_ROWS], args.steps))
        results["short texts"].append(short_texts(model, texts, args.alone, args.tokens))
    table = Table("", "per second", "per second, against", "ratio", box=box.MARKDOWN)
    for name, against in (("short texts", "one after the other"), ("steps of 16 texts", "bare")):
        ours, theirs = (median(values) for values in zip(*results[name], strict=True))
        ratios = sorted(a / b for a, b in results[name])
        shown = f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        table.add_row(name, f"{ours:.1f}", f"{theirs:.1f}, {against}", shown)
    Console(width=120).print(table)
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "tokenizer")}
        report = {"machine": facts(), **settings, "results": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
