"""Measures other programs on a GPU: `rwkv` 0.8.32 with its CUDA kernel, and transformers. Failures are reported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench.gpu_machine import median_seconds
from rwkv_engine import ModelConfig
from rwkv_engine.benchmark.subject import Subject, random_ids
from rwkv_engine.verification.baselines import RwkvPackage, Transformers

DECODED = 64  # tokens per measurement
PREFILLS = (256, 1024, 8192)
LONGEST = 30.0  # seconds that one prompt may take; without its kernel the rwkv package processes one token at a time
Rates = dict[str, object]


def peer_rates(path: Path, strategy: str, config: ModelConfig) -> dict[str, Rates]:
    """Tokens per second by program; or, under "error", why there are none.

    Importing the `rwkv` package changes torch's global flags, so measure everything else before.
    """
    makers: dict[str, Callable[[Path, str], Subject]] = {"rwkv": RwkvPackage, "transformers": Transformers}
    rates: dict[str, Rates] = {}
    for name, make in makers.items():
        try:
            with torch.no_grad():
                subject = make(path, strategy)
                title = f"{name} {subject.about['version']}"
                if "kernels" in subject.about:
                    title += f", CUDA kernel: {subject.about['kernels']}"
                rates[title] = _measure(title, subject, config)
                del subject
        except Exception as error:  # the rest is measured in any case
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)
            rates[name] = {"error": reason}
        gc.collect()
        torch.cuda.empty_cache()
    return rates


def _measure(title: str, subject: Subject, config: ModelConfig) -> Rates:
    ids = random_ids(config.n_vocab, max(PREFILLS))
    rates: Rates = {"decode": DECODED / median_seconds(lambda: subject.decode(ids[:DECODED]), 5)}
    rate = 0.0
    for n in PREFILLS:
        if rate and n / rate > LONGEST:
            print(f"{title}: prefill of {n} is left out, it would take {n / rate:.0f} s", file=sys.stderr)
            continue
        rate = n / median_seconds(lambda n=n: subject.prefill(ids[:n]), 5)
        rates[f"prefill_{n}"] = rate
    return rates
