"""What runs in a peer's own process: importing one changes the environment and torch's global flags."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkv_engine.verification.memory import peak_memory
from rwkv_engine.verification.peer_models import load_rwkv, rwkv_tensors

Answer = tuple[np.ndarray, int | None]


def transformers(path: Path, ids: list[int]) -> Answer:
    """Logits (T, V) of a Hugging Face directory in float32, and the process's peak memory in bytes."""

    def run() -> Tensor:
        package: Any = import_module("transformers")
        package.logging.set_verbosity_error()
        package.logging.disable_progress_bar()
        # Rescaling is for float16; in float32 it would only round.
        model = package.RwkvForCausalLM.from_pretrained(
            path, dtype=torch.float32, rescale_every=0, local_files_only=True
        )
        return model.eval()(torch.tensor([ids]), use_cache=False).logits[0]

    return _answer(run)


def rwkv(path: Path, ids: list[int]) -> Answer:
    """Logits (T, V) of any checkpoint on `cpu fp32`, and the process's peak memory in bytes."""

    def run() -> Tensor:
        tensors = rwkv_tensors(path)
        # It normalises the embedding in the file's own type, whatever the strategy.
        for name in ("emb.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias"):
            tensors[name] = tensors[name].float()
        model = load_rwkv(path, tensors, "cpu fp32", RWKV_JIT_ON="0", RWKV_RESCALE_LAYER="0")
        return model.forward(ids, None, full_output=True)[0]

    return _answer(run)


def _answer(run: Callable[[], Tensor]) -> Answer:
    with torch.no_grad(), redirect_stdout(sys.stderr):
        return run().numpy(), peak_memory()
