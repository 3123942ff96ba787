"""Measures what it costs that texts must have a form: compiling grammars, masks for each token, and 16 texts together.

    python -m bench.grammars --tokenizer 20B_tokenizer.json --world rwkv_vocab_v20230424.txt

The texts are those of a model with random weights, which follow a JSON schema or nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rwkv_engine import RWKV
from rwkv_engine.benchmark.machine import facts
from rwkv_engine.benchmark.models import parse_shape, write_synthetic
from rwkv_engine.structured import Grammar
from rwkv_engine.structured.vocabulary import vocabulary_of
from rwkv_engine.text import load_tokenizer

WORDS = {"type": "string", "maxLength": 200}
PERSON = {
    "type": "object",
    "properties": {
        "name": WORDS,
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["king", "queen", "miller", "wolf"]},
        "tales": {"type": "array", "items": WORDS, "maxItems": 5},
    },
    "required": ["name", "age", "kind", "tales"],
    "additionalProperties": False,
}
SCHEMAS = {"an object of a schema": PERSON, "a long list": {"type": "array", "items": PERSON, "minItems": 50}}


def masks(tokenizer: Path) -> list[dict[str, Any]]:
    """Times in ms for one vocabulary: that of the vocabulary itself, of compiling each schema, and of each mask."""
    loaded = load_tokenizer(tokenizer)
    begin = time.perf_counter()
    vocabulary_of(cast(Any, loaded))
    seconds = time.perf_counter() - begin
    model = SimpleNamespace(tokenizer=loaded, config=SimpleNamespace(n_vocab=loaded.n_vocab))
    results = []
    for name, schema in SCHEMAS.items():
        begin = time.perf_counter()
        grammar = Grammar.json_schema(cast(RWKV, model), schema)
        compiling = time.perf_counter() - begin
        times = sorted(_times_of_masks(grammar, loaded.end_of_text))
        results.append(
            {
                "tokenizer": tokenizer.name,
                "tokens": loaded.n_vocab,
                "schema": name,
                "vocabulary_ms": 1e3 * seconds,
                "compile_ms": 1e3 * compiling,
                "masks": len(times),
                "mask_ms_median": 1e3 * median(times),
                "mask_ms_99": 1e3 * quantiles(times, n=100)[98],
            }
        )
    return results


def _times_of_masks(grammar: Grammar, end: int | None) -> list[float]:
    rng, times = np.random.default_rng(1), list[float]()
    for _ in range(20):
        follow, tokens = grammar.begin(), list[int]()
        while len(tokens) < 200:
            begin = time.perf_counter()
            words = follow(tokens)
            times.append(time.perf_counter() - begin)
            if words is None:
                break
            allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
            token = int(rng.choice(allowed))
            if token == end:
                break
            tokens.append(token)
    return times


def tokens_per_second(model: RWKV, prompts: Sequence[str], grammar: Grammar | None) -> float:
    """The speed of texts together. They have the same length with and without a form: no token ends them."""
    options: dict[str, Any] = {"max_new_tokens": 64, "temperature": 0.8, "top_p": 0.9, "seed": 1, "stop_tokens": ()}
    begin = time.perf_counter()
    texts = list(model.generate_many(prompts, allowed_tokens=grammar, **options))
    return sum(len(text.tokens) for text in texts) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the 20B tokenizer")
    parser.add_argument("--world", type=Path, help="the World vocabulary, whose masks are measured too")
    parser.add_argument("--shape", default="169m")
    parser.add_argument("--strategy", default="cpu fp32i8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    console = Console(width=140)
    found = [result for path in (args.tokenizer, args.world) if path for result in masks(path)]
    table = Table("vocabulary", "form", "compile, ms", "mask, ms, median", "99 %", box=box.MARKDOWN)
    for one in found:
        numbers = (f"{one[key]:.3f}" for key in ("compile_ms", "mask_ms_median", "mask_ms_99"))
        table.add_row(f"{one['tokens']:,} tokens, {one['vocabulary_ms']:.0f} ms", one["schema"], *numbers)
    console.print(table)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        write_synthetic(path, parse_shape(args.shape), torch.float32, zeros=0.5)
        model = RWKV.from_pretrained(path, args.strategy, args.tokenizer)
    grammar = Grammar.json_schema(model, SCHEMAS["a long list"])
    prompts = [f"Tale {i}: " for i in range(16)]
    tokens_per_second(model, prompts, grammar)  # warms up
    rounds = [[tokens_per_second(model, prompts, form) for form in (None, grammar)] for _ in range(args.rounds)]
    free, formed = (median(speeds) for speeds in zip(*rounds, strict=True))
    ratios = sorted(b / a for a, b in rounds)
    shown = f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    table = Table("16 texts", "tok/s, free", "tok/s, JSON of a schema", "ratio", box=box.MARKDOWN)
    table.add_row(f"{args.shape}, {args.strategy}", f"{free:.0f}", f"{formed:.0f}", shown)
    console.print(table)
    if args.json:
        report = {"machine": facts(), "shape": args.shape, "strategy": args.strategy, "masks": found, "rounds": rounds}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
