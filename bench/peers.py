"""How fast is a strategy on the CPU beside the same one of the `rwkv` package and beside transformers?

    python -m bench.peers --strategy "cpu bf16" --json bench/results/peers.json

Random weights, so half of the squared relu is zero (trained models have more). Every round measures each engine once,
one after the other, so a machine that slows down slows all of them. Reported: medians, and the ratio to the `rwkv`
package within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("RWKV_JIT_ON", "1")  # the peer's own fast path; it reads these when imported
os.environ.setdefault("RWKV_CUDA_ON", "0")

import torch
from rich.console import Console
from rich.table import Table

from rwkv_engine import RWKV, ModelConfig
from rwkv_engine.core.strategy import DTYPES

STRATEGIES = ("cpu fp32", "cpu bf16")  # those that transformers knows too
SHAPES = {
    "1b5": ModelConfig(24, 2048, 2048, 8192, 50277),
    "169m": ModelConfig(12, 768, 768, 3072, 50277),
    "tales": ModelConfig(5, 224, 224, 768, 2048),
}


@dataclass
class Engine:
    name: str
    prefill: Callable[[list[int]], object]  # reads a prompt from the beginning
    decode: Callable[[int], None]  # reads one token more


def placed(strategy: str) -> tuple[str, torch.dtype]:
    """Device and dtype of a strategy of one segment, as torch calls them."""
    device, precision = strategy.split()
    return device, DTYPES[precision]


def random_checkpoint(config: ModelConfig, path: Path, strategy: str) -> None:
    torch.manual_seed(0)
    device, dtype = placed(strategy)
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 2:
            tensors[name] = (torch.randn(shape, device=device) / shape[1] ** 0.5).to("cpu", dtype)
        elif "time_mix" in name:
            tensors[name] = torch.rand(1, 1, *shape)
        elif "time_decay" in name:
            tensors[name] = torch.rand(shape) * 6 - 5
        else:
            tensors[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    torch.save(tensors, path)


def ours(path: Path, strategy: str) -> Engine:
    model = RWKV.from_pretrained(path, strategy)
    state = model.forward([1])[1]

    def decode(token: int) -> None:
        nonlocal state
        _, state = model.forward([token], state)

    return Engine("rwkv_engine", model.forward, decode)


def rwkv_package(path: Path, strategy: str) -> Engine:
    from rwkv.model import RWKV as Peer

    model = Peer(model=str(path.with_suffix("")), strategy=strategy, verbose=False)
    state = model.forward([1], None)[1]

    def decode(token: int) -> None:
        nonlocal state
        _, state = model.forward([token], state)

    return Engine("rwkv 0.8.32", lambda tokens: model.forward(tokens, None), decode)


def transformers_package(path: Path, strategy: str, config: ModelConfig) -> Engine:
    import transformers

    from rwkv_engine.core.names import to_hugging_face

    settings = transformers.RwkvConfig(
        vocab_size=config.n_vocab,
        hidden_size=config.n_embd,
        intermediate_size=config.n_ffn,
        num_hidden_layers=config.n_layer,
        rescale_every=0,
    )
    model = transformers.RwkvForCausalLM(settings).eval()
    stored = torch.load(path, weights_only=True)
    model.load_state_dict({to_hugging_face(name): tensor for name, tensor in stored.items()})
    device, dtype = placed(strategy)
    model.to(device, dtype)
    state = None

    @torch.no_grad()
    def prefill(tokens: list[int]) -> object:
        return model(torch.tensor([tokens], device=device), use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def decode(token: int) -> None:
        nonlocal state
        state = model(torch.tensor([[token]], device=device), state=state, use_cache=True).state

    return Engine(f"transformers {transformers.__version__}", prefill, decode)


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(engines: list[Engine], config: ModelConfig, rounds: int, n_prompt: int, n_decode: int) -> dict[str, dict]:
    tokens = torch.randint(config.n_vocab, (n_prompt,), generator=torch.Generator().manual_seed(1)).tolist()
    rates: dict[str, dict[str, list[float]]] = {e.name: {"prefill": [], "decode": []} for e in engines}
    for i in range(rounds + 1):
        for engine in engines:
            prefill = n_prompt / seconds(lambda e=engine: e.prefill(tokens))
            decode = n_decode / seconds(lambda e=engine: [e.decode(t) for t in tokens[:n_decode]])
            if i > 0:  # the first round warms up
                rates[engine.name]["prefill"].append(prefill)
                rates[engine.name]["decode"].append(decode)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="169m")
    parser.add_argument("--strategy", choices=STRATEGIES, default="cpu fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of prefill")
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded per round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = SHAPES[args.shape]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.pth"
        random_checkpoint(config, path, args.strategy)
        strategy = args.strategy
        engines = [ours(path, strategy), rwkv_package(path, strategy)]
        if args.shape != "1b5":  # three models of that size are too many for a small machine
            engines.append(transformers_package(path, strategy, config))
        rates = measure(engines, config, args.rounds, args.prompt, args.decode)

    base = rates["rwkv 0.8.32"]
    table = Table(args.strategy, f"prefill of {args.prompt}, tok/s", "vs rwkv", "decode, tok/s", "vs rwkv")
    summary = {}
    for name, rate in rates.items():
        row = {}
        for kind in ("prefill", "decode"):
            ratios = [a / b for a, b in zip(rate[kind], base[kind], strict=True)]
            row[kind] = {
                "median": statistics.median(rate[kind]),
                "min": min(rate[kind]),
                "max": max(rate[kind]),
                "ratio": statistics.median(ratios),
            }
        summary[name] = row
        cells = [c for r in row.values() for c in (f"{r['median']:.0f}", f"{r['ratio']:.2f} x")]
        table.add_row(name, *cells)
    Console().print(table)
    if args.json:
        machine = {
            "processor": platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        report = {
            "machine": machine,
            "shape": asdict(config),
            "arguments": vars(args) | {"json": None},
            "rates": summary,
        }
        args.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
