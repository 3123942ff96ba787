"""Measures the peak performance of a GPU, and of other programs on it, as a baseline for this engine.

    python -m tools.gpu_baseline --json bench/results/gpu-baseline.json

It measures the bandwidth of a copy, the TFLOPS of large 16-bit products, and the decoding and prefill of the `rwkv`
package with its CUDA kernel and of transformers, on random weights in the 1B5 shape. A program that is not installed is
left out, with a message.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from bench.gpu_machine import copy_bandwidth, facts, matrix_peak, require_gpu
from bench.gpu_peers import peer_rates
from rwkv_engine import Strategy
from rwkv_engine.benchmark.models import SHAPES, write_synthetic

ZEROS = 0.5  # the share of zeros in the squared ReLU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b5")
    parser.add_argument("--strategy", default="cuda fp16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    require_gpu()
    config = SHAPES[args.shape]
    machine = facts() | {
        "copy_gb_per_second": copy_bandwidth(),
        "bf16_tflops": matrix_peak(torch.bfloat16),
        "fp16_tflops": matrix_peak(torch.float16),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        dtype = Strategy.parse(args.strategy).place(config)[-1].dtype
        write_synthetic(path, config, dtype, ZEROS, "cuda")
        peers = peer_rates(path, args.strategy, config)
    report = json.dumps(
        {"machine": machine, "shape": asdict(config), "strategy": args.strategy, "peers": peers}, indent=2
    )
    print(report)
    if args.json:
        args.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
