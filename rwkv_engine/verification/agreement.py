"""Checks whether other programs compute the same logits from a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkv_engine.core import ModelConfig
from rwkv_engine.verification.baselines import is_installed, load_rwkv, rwkv_tensors, unsupported
from rwkv_engine.verification.check import Check, judged, relative_difference
from rwkv_engine.verification.memory import peak_memory

# Logits (T, V), and the peak memory of the process in bytes, if known.
Answer = tuple[np.ndarray, int | None]


def check_baseline(
    name: str, path: Path, config: ModelConfig, ids: list[int], logits: Tensor, n_prompt: int, tolerance: float
) -> Check:
    """Compares logits with those of a baseline in float32, which runs in a process of its own.

    Args:
        name: a key of `RUNNERS`.
        path: the checkpoint.
        config: the model's sizes.
        ids: T tokens, a prompt and its greedy continuation.
        logits: (T, V), those of this package.
        n_prompt: the number of tokens in the prompt.
        tolerance: the largest difference allowed, relative to the largest logit.
    """
    if reason := _unsuitable(name, path, config):
        return Check(name, "skipped", f"not checked: {reason}")
    title = f"{name} {version(name)}"
    try:
        # Spawned, not forked: the child inherits neither torch's threads nor our memory.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            answer, memory = pool.submit(RUNNERS[name], path, ids).result()
    except Exception as error:  # a baseline may raise anything, or be killed for lack of memory
        first_line = next(iter(str(error).splitlines()), "")
        return Check(name, "skipped", f"not checked: {title} failed: {type(error).__name__}: {first_line}")
    theirs = torch.from_numpy(answer)
    difference = relative_difference(logits, theirs)
    continuation = slice(n_prompt - 1, None)
    same = (logits[continuation].argmax(-1) == theirs[continuation].argmax(-1)).tolist()
    return judged(
        name,
        difference <= tolerance,
        f"{title}: logits differ by {difference:.1e} of the largest, allowed {tolerance:.0e};"
        f" {sum(same)} of {len(same)} greedy tokens the same",
        difference=difference if difference < torch.inf else None,
        same_tokens=sum(same),
        tokens=len(same),
        peak_memory=memory,
    )


def _unsuitable(name: str, path: Path, config: ModelConfig) -> str | None:
    if not is_installed(name):
        return f"{name} is not installed"
    if reason := unsupported(name, config):
        return reason
    if name == "transformers" and not (path / "config.json").is_file():
        return "transformers reads Hugging Face directories"
    if name == "rwkv" and config.layer_norm_eps != 1e-5:
        return f"the rwkv package knows one layer_norm_epsilon, 1e-5, got {config.layer_norm_eps:g}"
    return None


def _transformers(path: Path, ids: list[int]) -> Answer:
    """Runs transformers on a Hugging Face directory; called in the baseline's process."""

    def run() -> Tensor:
        package: Any = import_module("transformers")
        package.logging.set_verbosity_error()
        package.logging.disable_progress_bar()
        # Rescaling prevents overflow in float16; in float32 it would only add rounding errors.
        model = package.RwkvForCausalLM.from_pretrained(
            path, dtype=torch.float32, rescale_every=0, local_files_only=True
        )
        return model.eval()(torch.tensor([ids]), use_cache=False).logits[0]

    return _answer(run)


def _rwkv(path: Path, ids: list[int]) -> Answer:
    """Runs the rwkv package on any checkpoint with `cpu fp32`; called in the baseline's process."""

    def run() -> Tensor:
        tensors = rwkv_tensors(path)
        # The package normalises the embedding in the file's dtype, whatever the strategy.
        for name in ("emb.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias"):
            tensors[name] = tensors[name].float()
        model = load_rwkv(path, tensors, "cpu fp32", RWKV_JIT_ON="0", RWKV_RESCALE_LAYER="0")
        return model.forward(ids, None, full_output=True)[0]

    return _answer(run)


def _answer(run: Callable[[], Tensor]) -> Answer:
    with torch.no_grad(), redirect_stdout(sys.stderr):
        return run().numpy(), peak_memory()


# In the order in which they are checked.
RUNNERS: dict[str, Callable[[Path, list[int]], Answer]] = {"transformers": _transformers, "rwkv": _rwkv}
