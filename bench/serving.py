"""Measures what the server costs beside the library: tokens per second of many streams, and the time to a first piece.

    python -m bench.serving --tokenizer 20B_tokenizer.json --shape 169m --strategy "cpu fp32i8"

The server is a process of its own. It and the library run in turn, on the same prompts, options and seeds. The client
shares the machine with the server, so it does little more than to read sockets; its time is measured, too.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.stream_client import streamed
from rwkv_engine import RWKV
from rwkv_engine.benchmark.machine import facts
from rwkv_engine.benchmark.models import parse_shape, write_synthetic

PROMPT = "Once upon a time there was a king who"
SAMPLING = {"temperature": 0.8, "top_p": 0.9}


@contextmanager
def server(model: Path, strategy: str, tokenizer: str, *more: str) -> Iterator[int]:
    """The port of a server with `more` options, from when it is ready on."""
    options = ["--strategy", strategy, "--tokenizer", tokenizer, "--port", "0"]
    command = [sys.executable, "-m", "rwkv_engine", "serve", str(model), *options, *more]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            port, is_ready = None, False
            while not is_ready:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.2)
                log.seek(0)
                text = log.read()
                port = port or re.search(r"http://127.0.0.1:(\d+)", text)
                is_ready = '"message": "ready' in text
            assert port
            urlopen(f"http://127.0.0.1:{port[1]}/ready").close()
            yield int(port[1])
        finally:
            process.terminate()


def serve_round(port: int, streams: int, tokens: int) -> float:
    """Tokens per second of streams that begin together."""
    begin = time.perf_counter()
    bodies = [{"prompt": PROMPT, "max_tokens": tokens, "seed": seed, **SAMPLING} for seed in range(streams)]
    n_tokens = sum(stream.n_tokens for stream in streamed(port, bodies))
    return n_tokens / (time.perf_counter() - begin)


def library_round(model: RWKV, streams: int, tokens: int) -> float:
    """The same through `stream_many`."""
    prompts = [{"prompt": PROMPT, "seed": seed} for seed in range(streams)]
    begin = time.perf_counter()
    results = list(model.generate_many(prompts, tokens, **SAMPLING))  # type: ignore[arg-type]
    return sum(len(result.tokens) for result in results) / (time.perf_counter() - begin)


def first_piece(model: RWKV) -> float:
    """The seconds to the first piece of one text."""
    begin = time.perf_counter()
    next(model.stream(PROMPT, 8, seed=1, **SAMPLING))  # type: ignore[arg-type]
    return time.perf_counter() - begin


def served_first_piece(port: int) -> float:
    """The same through the server."""
    begin = time.perf_counter()
    (stream,) = streamed(port, [{"prompt": PROMPT, "max_tokens": 8, "seed": 1, **SAMPLING}])
    return stream.first - begin


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """The median, with the lowest and the highest value."""
    return f"{median(values) * scale:.4g} ({min(values) * scale:.4g}-{max(values) * scale:.4g})"


def main() -> None:
    """Measures, prints a table, and writes JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--shape", default="169m")
    parser.add_argument("--strategy", default="cpu fp32i8")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rates: dict[str, list[float]] = {"library": [], "server": []}
    firsts: dict[str, list[float]] = {"library": [], "server": []}
    clients: list[float] = []  # the seconds of a core that the client takes for a token
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        write_synthetic(path, parse_shape(chosen.shape), torch.float32, 0.7)
        model = RWKV.from_pretrained(path, chosen.strategy, chosen.tokenizer)
        with server(path, chosen.strategy, chosen.tokenizer) as port:
            for round_ in range(-1, chosen.rounds):  # the first one warms up
                rate = library_round(model, chosen.streams, chosen.tokens)
                before = time.thread_time()
                served = serve_round(port, chosen.streams, chosen.tokens)
                client = (time.thread_time() - before) / (chosen.streams * chosen.tokens)
                shorts = [(first_piece(model), served_first_piece(port)) for _ in range(10)]
                if round_ >= 0:
                    rates["library"].append(rate)
                    rates["server"].append(served)
                    clients.append(client)
                    firsts["library"] += [short for short, _ in shorts]
                    firsts["server"] += [short for _, short in shorts]
    table = Table(box=box.MARKDOWN)
    for title in ("", f"tok/s, {chosen.streams} streams", "ms to the first piece"):
        table.add_column(title)
    for name in rates:
        table.add_row(name, spread(rates[name]), spread(firsts[name], 1000))
    Console(width=120).print(table)
    # Of the rounds, because the machine's speed changes from one to the next.
    share = median(served / rate for served, rate in zip(rates["server"], rates["library"], strict=True))
    more = median(firsts["server"]) - median(firsts["library"])
    print(f"the server reaches {share:.1%} of the library's tok/s; a first piece takes {more * 1000:.1f} ms longer")
    print(f"the client took {spread(clients, 1e6)} us of a core for a token")
    if chosen.json:
        about = {name: value for name, value in vars(chosen).items() if name not in ("json", "tokenizer")}
        result = {"about": about, "machine": facts(), "tok_per_s": rates, "first_piece_s": firsts, "client_s": clients}
        chosen.json.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
