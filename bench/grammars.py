"""Measures libraries for grammars: the time of a mask and of compiling, and what masks cost in generation.

    python -m bench.grammars --json bench/results/grammars.json

Each library that is installed follows the same JSON texts token by token, with the 20B vocabulary (`--tokenizer`) and
with the World vocabulary of the `rwkv` package. With `--texts 16`, a synthetic model then writes so many texts at a
time, with a JSON schema and without, in turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rwkv_engine import RWKV
from rwkv_engine.benchmark.machine import facts
from rwkv_engine.benchmark.models import parse_shape, write_synthetic
from rwkv_engine.structured import JsonSchema
from rwkv_engine.structured.vocabulary import vocabulary
from rwkv_engine.text import Tokenizer, WorldTokenizer, load_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "is_king": {"type": "boolean"},
        "children": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        "mood": {"enum": ["glad", "sad", "angry"]},
    },
    "required": ["name", "age", "is_king", "children", "mood"],
    "additionalProperties": False,
}
VALUE = {
    "name": "Jorinde, the old miller's daughter from Göttingen",
    "age": 47,
    "is_king": False,
    "children": [{"name": "Hänsel"}, {"name": "Gretel of the dark forest 🦊"}],
    "mood": "glad",
}
TEXT = json.dumps(VALUE, separators=(",", ":"), ensure_ascii=False)
# For the synthetic model: strings of any length would hardly ever end.
LONG = {"type": "array", "items": {**PERSON}, "minItems": 1000}

Follow = Callable[[], tuple[Callable[[], object], Callable[[int], object]]]  # -> fill the mask, read a token


def llguidance(tokenizer: Tokenizer) -> Follow:
    import llguidance as library

    tokens = vocabulary(tokenizer, True)

    def follow() -> tuple[Callable[[], object], Callable[[int], object]]:
        grammar = library.LLMatcher.grammar_from_json_schema(PERSON, overrides={"whitespace_flexible": False})
        matcher = library.LLMatcher(tokens, grammar)
        mask = np.zeros(-(-tokens.vocab_size // 32), dtype=np.int32)
        return lambda: matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes), matcher.consume_token

    return follow


def xgrammar(tokenizer: Tokenizer) -> Follow:
    import xgrammar as library

    entries = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
    end = tokenizer.end_of_text or 0
    info = library.TokenizerInfo(entries, library.VocabType.RAW, stop_token_ids=[end])
    compiler = library.GrammarCompiler(info, max_threads=2, cache_enabled=False)

    def follow() -> tuple[Callable[[], object], Callable[[int], object]]:
        compiled = compiler.compile_json_schema(json.dumps(PERSON), any_whitespace=False, separators=(",", ":"))
        matcher, mask = library.GrammarMatcher(compiled), library.allocate_token_bitmask(1, tokenizer.n_vocab)
        return lambda: matcher.fill_next_token_bitmask(mask), matcher.accept_token

    return follow


def outlines_core(tokenizer: Tokenizer) -> Follow:
    import outlines_core as library
    from outlines_core.json_schema import build_regex_from_schema

    ids: dict[bytes, list[int]] = {}
    for i in range(tokenizer.n_vocab):
        if entry := tokenizer.token_bytes(i):
            ids.setdefault(entry, []).append(i)
    tokens = library.Vocabulary(tokenizer.end_of_text or 0, ids)

    def follow() -> tuple[Callable[[], object], Callable[[int], object]]:
        pattern = build_regex_from_schema(json.dumps(PERSON), r"")
        guide = library.Guide(library.Index(pattern, tokens))
        mask = np.zeros(-(-tokenizer.n_vocab // 32), dtype=np.int32)
        fill = lambda: guide.write_mask_into(mask.ctypes.data, mask.size, mask.itemsize)  # noqa: E731
        return fill, lambda token: guide.advance(token, return_tokens=False)

    return follow


LIBRARIES: dict[str, Callable[[Tokenizer], Follow]] = {
    "llguidance": llguidance,
    "xgrammar": xgrammar,
    "outlines-core": outlines_core,
}


def measured(make: Callable[[Tokenizer], Follow], tokenizer: Tokenizer, rounds: int) -> dict[str, float]:
    """Seconds to prepare the vocabulary and to compile; microseconds of a mask and of reading the token after it."""
    begin = time.perf_counter()
    follow = make(tokenizer)
    prepared = time.perf_counter() - begin
    compiling, masks = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        fill, read = follow()
        compiling.append(time.perf_counter() - begin)
        for token in tokenizer.encode(TEXT):
            begin = time.perf_counter()
            fill()
            read(token)
            masks.append(time.perf_counter() - begin)
    p50, p99 = np.percentile(masks, [50, 99]) * 1e6
    return {"vocabulary_s": prepared, "compile_s": median(compiling), "mask_p50_us": p50, "mask_p99_us": p99}


def generated(
    path: Path, strategy: str, tokenizer: str, texts: int, tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Tokens per second of many texts at a time, with a schema and without, in turn."""
    model = RWKV.from_pretrained(path, strategy, tokenizer)
    kinds = {"free": None, "JSON schema": JsonSchema(LONG)}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(-1, rounds):  # the first one warms up
        for kind, form in kinds.items():
            prompts = [{"prompt": "Once upon a time", "seed": seed} for seed in range(texts)]
            begin = time.perf_counter()
            found = list(
                model.generate_many(prompts, tokens, allowed_tokens=form, stop_tokens=(), temperature=0.8, top_p=0.9)
            )
            rate = sum(len(text.tokens) for text in found) / (time.perf_counter() - begin)
            assert all(len(text.tokens) == tokens for text in found), "a text has ended early"
            if round_ >= 0:
                rates[kind].append(rate)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="tokenizer.json of the 20B tokenizer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=0, help="also generate so many texts at a time; needs --tokenizer")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--shape", default="169m")
    parser.add_argument("--strategy", default="cpu fp32i8")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tokenizers: dict[str, Tokenizer] = {"20B": load_tokenizer(args.tokenizer)} if args.tokenizer else {}
    if (spec := importlib.util.find_spec("rwkv")) and spec.submodule_search_locations:
        tokenizers["World"] = WorldTokenizer(Path(spec.submodule_search_locations[0], "rwkv_vocab_v20230424.txt"))
    table = Table("library", "vocabulary", "prepare s", "compile ms", "mask p50 us", "p99 us", box=box.MARKDOWN)
    results = []
    for name, make in LIBRARIES.items():
        try:
            about = {"library": name, "version": version(name), "requires": requires(name) or []}
        except PackageNotFoundError:
            print(f"{name} is not installed")
            continue
        for vocabulary_name, tokenizer in tokenizers.items():
            got = measured(make, tokenizer, args.rounds)
            results.append({**about, "vocabulary": vocabulary_name, "n_vocab": tokenizer.n_vocab, **got})
            shown = [f"{got['vocabulary_s']:.2f}", f"{got['compile_s'] * 1e3:.2f}"]
            table.add_row(name, vocabulary_name, *shown, f"{got['mask_p50_us']:.1f}", f"{got['mask_p99_us']:.0f}")
    Console(width=120).print(table)
    rates = {}
    if args.texts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.pth")
            write_synthetic(path, parse_shape(args.shape), torch.float32, 0.7)
            rates = generated(path, args.strategy, args.tokenizer, args.texts, args.tokens, args.rounds)
        shares = sorted(b / a for a, b in zip(*rates.values(), strict=True))
        for kind, values in rates.items():
            print(f"{kind}: {median(values):.1f} tok/s ({min(values):.1f}-{max(values):.1f})")
        print(f"with a schema {median(shares):.1%} ({shares[0]:.1%}-{shares[-1]:.1%}) of the tok/s without")
    if args.json:
        about = {k: v for k, v in vars(args).items() if k not in ("json", "tokenizer")}
        report = {"machine": facts(), "about": about, "libraries": results, "tok_per_s": rates}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
