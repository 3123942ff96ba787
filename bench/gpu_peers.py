"""The peers on a GPU: `rwkv` 0.8.32 with its CUDA kernel, and transformers. What is missing or fails is said aloud."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bench.gpu_machine import median_seconds
from bench.peers import Engine, rwkv_package, transformers_package
from rwkv_engine import ModelConfig, _toolkit

DECODED = 64  # tokens per measurement
PREFILLS = (256, 1024, 8192)
LONGEST = 30.0  # seconds that one prompt may take: a peer without its kernel reads token by token
Rates = dict[str, object]


def peer_rates(path: Path, strategy: str, config: ModelConfig) -> dict[str, Rates]:
    """Tokens per second by peer; or, under "error", why there are none.

    Importing the `rwkv` package changes torch's global flags, so whatever else is to be measured comes before.
    """
    makers: dict[str, Callable[[], Engine]] = {
        "rwkv": lambda: _rwkv(path, strategy),
        "transformers": lambda: transformers_package(path, strategy, config),
    }
    rates = {}
    for name, make in makers.items():
        try:
            with torch.no_grad():
                engine = make()
                rates[engine.name] = _measure(engine, config)
                del engine
        except Exception as error:  # whatever a peer does, the rest is measured
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)
            rates[name] = {"error": reason}
        gc.collect()
        torch.cuda.empty_cache()
    return rates


def _rwkv(path: Path, strategy: str) -> Engine:
    """With its kernel if that can be compiled; the package decides when it is imported, once for all strategies."""
    nvcc = _toolkit.find_nvcc()
    if nvcc:
        os.environ["CUDA_HOME"] = str(nvcc.root)  # of its own torch finds no headers where nvcc is a script
    if "rwkv.model" not in sys.modules:
        os.environ["RWKV_CUDA_ON"] = "1"
        try:
            importlib.import_module("rwkv.model")
        except ModuleNotFoundError:
            raise
        except Exception as error:
            print(f"rwkv without its CUDA kernel, which cannot be built: {error}"[:500], file=sys.stderr, flush=True)
            os.environ["RWKV_CUDA_ON"] = "0"
    engine = rwkv_package(path, strategy)
    has_kernel = hasattr(sys.modules["rwkv.model"], "cuda_wkv")
    return replace(engine, name=f"{engine.name}, {'its' if has_kernel else 'no'} CUDA kernel")


def _measure(engine: Engine, config: ModelConfig) -> Rates:
    tokens = torch.randint(config.n_vocab, (max(PREFILLS),), generator=torch.Generator().manual_seed(1)).tolist()
    rates: Rates = {"decode": DECODED / median_seconds(lambda: [engine.decode(t) for t in tokens[:DECODED]], 5)}
    rate = 0.0
    for n in PREFILLS:
        if rate and n / rate > LONGEST:
            print(f"{engine.name}: prefill of {n} is left out, it would take {n / rate:.0f} s", file=sys.stderr)
            continue
        rate = n / median_seconds(lambda n=n: engine.prefill(tokens[:n]), 5)
        rates[f"prefill_{n}"] = rate
    return rates
