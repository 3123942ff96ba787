"""Measures sealed states: going on from one against reading the text again, their sizes, and what 16 bits lose.

    python -m bench.portable --tokenizer 20B_tokenizer.json --text fairy_tales_valid.txt

The server is a process of its own, and times are those of whole requests for one token. Each round has a new text:
`read again` sends it with what follows, `state` sends its state with what follows, and `state, nothing new` goes on
with the same text. Weights and tokens are random. The states of the 1B5 shape are those of a model with 384 layers of
width 128, which have as many numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import Request, urlopen

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.parked import SHAPE, losses, print_losses
from bench.serving import server, spread
from rwkv_engine import RWKV
from rwkv_engine.benchmark.machine import facts
from rwkv_engine.benchmark.models import parse_shape, write_synthetic
from rwkv_engine.core import Snapshot
from rwkv_engine.portable import Sealer, SealingKeys
from rwkv_engine.text.tokenizer import ByteTokenizer

NEW = 8  # tokens that follow a text


def timed(port: int, **body: Any) -> tuple[float, dict[str, Any]]:
    """The seconds of a request for one token, and its choice."""
    content = json.dumps({"max_tokens": 1, "temperature": 0, "no_cache": True, **body}).encode()
    request = Request(f"http://127.0.0.1:{port}/v1/completions", content, {"Content-Type": "application/json"})
    begin = time.perf_counter()
    with urlopen(request) as response:
        answer = response.read()
    return time.perf_counter() - begin, json.loads(answer)["choices"][0]


def measure(port: int, n_tokens: int, n_vocab: int, rounds: int) -> dict[str, list[float]]:
    """The seconds of each way to go on, one for each round."""
    source = random.Random(0)
    found: dict[str, list[float]] = {"read again": [], "state": [], "state, nothing new": []}
    for round_ in range(-1, rounds):  # the first one warms up
        text, more = ([source.randrange(n_vocab) for _ in range(n)] for n in (n_tokens, NEW))
        _, known = timed(port, prompt=text, return_state=True, max_tokens=4)
        again, _ = timed(port, prompt=[*text, *more])
        resumed, _ = timed(port, prompt=more, state=known["state"])
        same, _ = timed(port, prompt="", state=known["state"])
        if round_ >= 0:
            for name, seconds in zip(found, (again, resumed, same), strict=True):
                found[name].append(seconds)
    return found


def sizes(shape: str) -> dict[str, float]:
    """Bytes of a state and of what it is sealed to, and the milliseconds that sealing and opening take."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        write_synthetic(path, parse_shape(shape), torch.float32, 0.7)
        model = RWKV.from_pretrained(path)
        _, state = model.forward([source % 256 for source in range(7, 2000, 7)])
        sealer = Sealer(SealingKeys([os.urandom(32)]), model.config, "", ByteTokenizer())
    state = type(state)(state.fields, state.position)
    found = {"state_bytes": float(sum(field.nbytes for field in state.fields.values()))}
    for dtype in ("float32", "float16"):
        begin = time.perf_counter()
        blob = sealer.seal(Snapshot(state), dtype=dtype)
        sealed = time.perf_counter()
        sealer.open(blob)
        found |= {f"{dtype}_bytes": len(blob), f"{dtype}_seal_ms": 1000 * (sealed - begin)}
        found |= {f"{dtype}_open_ms": 1000 * (time.perf_counter() - sealed)}
    return found


def print_times(found: dict[str, list[float]], n_tokens: int) -> None:
    table = Table("after a text", "ms", "% of reading again", title=f"text of {n_tokens} tokens", box=box.MARKDOWN)
    for name, values in found.items():
        ratios = [100 * one / again for one, again in zip(values, found["read again"], strict=True)]
        table.add_row(name, spread(values, 1000), spread(ratios))
    Console(width=120).print(table)


def per_gb(n_bytes: float) -> tuple[str, str]:
    return f"{n_bytes / 1e3:.0f}", f"{1e9 / n_bytes:,.0f}"


def print_sizes(found: dict[str, dict[str, float]]) -> None:
    table = Table("shape", "sealed as", "kB", "conversations per GB", "seal, ms", "open, ms", box=box.MARKDOWN)
    for shape, own in found.items():
        table.add_row(shape, "(in memory)", *per_gb(own["state_bytes"]), "", "")
        for dtype in ("float32", "float16"):
            times = [f"{own[f'{dtype}_{what}_ms']:.1f}" for what in ("seal", "open")]
            table.add_row(shape, dtype, *per_gb(own[f"{dtype}_bytes"]), *times)
    Console(width=120).print(table)


def main() -> None:
    """Measures, prints tables, and writes JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--text", type=Path, required=True, help="on which the embedded model predicts")
    parser.add_argument("--shape", default="169m")
    parser.add_argument("--strategy", default="cpu fp32i8")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, keys = Path(folder, "model.pth"), Path(folder, "keys")
        write_synthetic(path, parse_shape(chosen.shape), torch.float32, 0.7)
        keys.write_text("A" * 43 + "=\n", encoding="ascii")
        with server(path, chosen.strategy, chosen.tokenizer, "--state-keys", str(keys)) as port:
            times = measure(port, chosen.tokens, parse_shape(chosen.shape).n_vocab, chosen.rounds)
    print_times(times, chosen.tokens)
    by_shape = {"169M": sizes("12,768,256"), "1B5": sizes(SHAPE)}
    print_sizes(by_shape)
    lost = losses(RWKV.from_pretrained("tales"), chosen.text.read_text(encoding="utf-8"))
    print_losses(lost)
    print(f"going on takes {100 * median(times['state']) / median(times['read again']):.2f} % of reading again")
    if chosen.json:
        about = {name: getattr(chosen, name) for name in ("shape", "strategy", "tokens", "rounds")}
        result = {"about": about, "machine": facts(), "seconds": times, "sizes": by_shape, "losses": lost}
        chosen.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
