"""Measures how fast tokenizers encode text.

    python -m bench.tokenizers --text FILE --json bench/results/tokenizers.json

`encode` from str to list of int with the World vocabulary: our compiled trie, our plain Python reference, and the
`rwkv` package, whose vocabulary file all three read. Each round measures each once; the best round counts. The two slow
ones encode only the first part of the text.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rwkv_engine.native import cpu_kernels
from rwkv_engine.text import WorldTokenizer
from rwkv_engine.text.byte_trie import byte_trie_reference

ROOT = Path(__file__).resolve().parent.parent
SLOW_BYTES = 200_000


@dataclass
class Encoder:
    name: str
    encode: Callable[[str], list[int]]
    text: str


def package_folder() -> Path:
    spec = importlib.util.find_spec("rwkv")  # importing the package would have effects
    if spec is None:
        raise SystemExit("bench.tokenizers needs the rwkv package: pip install -c constraints.txt '.[test]'")
    return Path(spec.submodule_search_locations[0])


def package_encoder(folder: Path, vocabulary: Path) -> Callable[[str], list[int]]:
    spec = importlib.util.spec_from_file_location("rwkv_tokenizer", folder / "rwkv_tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TRIE_TOKENIZER(str(vocabulary)).encode


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a UTF-8 file; by default this project's README, fifty times")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = args.text.read_text("utf-8") if args.text else (ROOT / "README.md").read_text("utf-8") * 50

    folder = package_folder()
    vocabulary = folder / "rwkv_vocab_v20230424.txt"
    load = min(seconds(lambda: WorldTokenizer(vocabulary)) for _ in range(args.rounds))
    world = WorldTokenizer(vocabulary)
    build = seconds(lambda: world.encode(""))
    reference = byte_trie_reference({i: b for i in range(world.n_vocab) if (b := world.token_bytes(i))})
    part = text[:SLOW_BYTES]
    compiled = cpu_kernels.python_module("byte_trie") is not None
    encoders = [
        *([Encoder("rwkv_engine", world.encode, text)] if compiled else []),
        Encoder("rwkv_engine, plain Python", lambda s: reference(s.encode()), part),
        Encoder("rwkv package", package_encoder(folder, vocabulary), part),
    ]
    assert all(e.encode(part) == encoders[0].encode(part) for e in encoders)

    best: dict[str, float] = {}
    for _ in range(args.rounds):
        for e in encoders:
            rate = len(e.text.encode()) / 1e6 / seconds(lambda e=e: e.encode(e.text))
            best[e.name] = max(rate, best.get(e.name, 0.0))

    table = Table("World, str to list of int", "MB/s", "vs rwkv")
    for name, rate in best.items():
        table.add_row(name, f"{rate:.1f}", f"{rate / best['rwkv package']:.1f} x")
    Console().print(table)
    per_token = len(text.encode()) / len(encoders[0].encode(text))
    print(f"{per_token:.2f} bytes a token; the file is read in {load:.2f} s, the trie built in {build:.2f} s")
    if args.json:
        status = cpu_kernels.status()
        report = {
            "machine": {"processor": platform.machine(), "python": platform.python_version(), "level": status.level},
            "text": {"name": args.text.name if args.text else "README.md", "bytes": len(text.encode())},
            "rounds": args.rounds,
            "MB_per_second": best,
            "bytes_per_token": per_token,
            "seconds": {"load": load, "build_trie": build},
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
