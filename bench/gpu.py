"""Measures decoding and prefill on a GPU, in comparison with other programs and the GPU's memory bandwidth.

    python -m bench.gpu --json bench/results/gpu.json

It measures what `rwkv-engine bench` does not: greedy decoding, eager and as a CUDA graph, and long prompts in other
programs. It uses random weights in the 1B5 shape, with half of the squared ReLU zero (trained models have more). GB/s
counts the bytes of all weights, even of those that the kernels skip because their input is zero; therefore the fraction
of the bandwidth of a copy, which is measured in the same run, can exceed 100 %. All numbers are medians of several
runs. It takes a few minutes, mostly to compile the other program's kernel.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.gpu_machine import copy_bandwidth, facts, median_seconds, require_gpu
from bench.gpu_peers import PREFILLS, Rates, peer_rates
from rwkv_engine import RWKV, ModelConfig, Strategy
from rwkv_engine.benchmark.lineup import bytes_per_token
from rwkv_engine.benchmark.models import SHAPES, write_synthetic
from rwkv_engine.benchmark.subject import GREEDY, random_ids
from rwkv_engine.core.config import Role
from rwkv_engine.core.state import State
from rwkv_engine.native import cuda_kernels
from rwkv_engine.runtime.decoder import Decoder
from rwkv_engine.runtime.graph import eager

ZEROS = 0.5  # of the squared relu; trained models have more
BATCHES = (1, 4, 16)
STEPS = 128


def dtype_of(strategy: str, config: ModelConfig) -> torch.dtype:
    """The dtype of the head; with a strategy of one segment, of the whole model."""
    return Strategy.parse(strategy).place(config)[-1].dtype


def weights(config: ModelConfig, *without: str) -> int:
    """The number of weights in all matrices except the named ones."""
    specs = config.tensors().items()
    return sum(math.prod(s.shape) for name, s in specs if s.role is not Role.VECTOR and name not in without)


def our_rates(path: Path, strategy: str, config: ModelConfig, bandwidth: float) -> dict[str, Rates]:
    """Rows of the table: decoding by kind and batch size, and prefill by length."""
    model = RWKV.from_pretrained(path, strategy)
    size = bytes_per_token(config, Strategy.parse(strategy).place(config), [0.0] * config.n_layer)
    products = 2 * weights(config, "emb.weight", "head.weight")  # for each token of a prompt except the last
    rows: dict[str, Rates] = {}
    for kind, decoder in (
        ("graph", Decoder(model.engine.model)),
        ("eager", Decoder(model.engine.model, capture=eager)),
    ):
        for batch in BATCHES:
            slots = decoder.pool.take(State.initial(config, batch))
            first = torch.ones(batch, dtype=torch.int64)
            step = median_seconds(lambda d=decoder, f=first, s=slots: d.run(f, s, STEPS, GREEDY), 7) / STEPS
            decoder.pool.free(slots)
            rows[f"decode {kind}, B = {batch}"] = {
                "tokens_per_second": batch / step,
                "step_ms": 1e3 * step,
                "gb_per_second": size / step / 1e9,
                "share_of_copy": size / step / 1e9 / bandwidth,
            }
    tokens = torch.tensor([random_ids(config.n_vocab, max(PREFILLS))])
    for n in PREFILLS:
        rate = n / median_seconds(lambda n=n: model.engine.forward(tokens[:, :n]), 7)
        rows[f"prefill {n}"] = {"tokens_per_second": rate, "tflops": rate * products / 1e12}
    return rows


def table(strategy: str, ours: dict[str, Rates], peers: dict[str, Rates]) -> Table:
    names = [name for name, rates in peers.items() if "error" not in rates]
    shown = Table(strategy, "tok/s", "GB/s", "of a copy", *names)
    for row, rates in ours.items():
        key = row.replace(" ", "_") if row.startswith("prefill") else "decode" if row.endswith("B = 1") else ""
        cells = [f"{rates['tokens_per_second']:,.0f}"]
        cells += [f"{rates['gb_per_second']:,.0f}", f"{rates['share_of_copy']:.0%}"] if "step_ms" in rates else ["", ""]
        cells += [f"{peers[name][key]:,.0f}" if key in peers[name] else "" for name in names]
        shown.add_row(row, *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b5")
    parser.add_argument(
        "--strategy", action="append", help="of one segment; again for more; cuda fp16 and cuda fp16i8 if none is given"
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    require_gpu()
    config, strategies = SHAPES[args.shape], args.strategy or ["cuda fp16", "cuda fp16i8"]
    bandwidth = copy_bandwidth()
    kernels = cuda_kernels.status()
    report: dict = {
        "machine": facts() | {"copy_gb_per_second": bandwidth, "kernels": f"{kernels.kind}: {kernels.reason}"},
        "shape": asdict(config),
        "strategies": {},
    }
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.pth"
        for strategy in strategies:  # this engine before any other program, see peer_rates
            write_synthetic(path, config, dtype_of(strategy, config), ZEROS, "cuda")
            report["strategies"][strategy] = {"ours": our_rates(path, strategy, config, bandwidth), "peers": {}}
            torch.cuda.empty_cache()
        for strategy in [] if args.no_peers else strategies:
            write_synthetic(path, config, dtype_of(strategy, config), ZEROS, "cuda")
            report["strategies"][strategy]["peers"] = peer_rates(path, strategy, config)
    for strategy, rates in report["strategies"].items():
        Console().print(table(strategy, rates["ours"], rates["peers"]))
    print(f"{report['machine']['gpu']}: a copy moves {bandwidth:,.0f} GB/s; kernels {report['machine']['kernels']}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
