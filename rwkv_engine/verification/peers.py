"""Do other programs compute the same from this checkpoint?"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from rwkv_engine.core import ModelConfig
from rwkv_engine.verification import peer_process
from rwkv_engine.verification.check import Check, judged, relative_difference

PEERS: dict[str, Callable[[Path, list[int]], peer_process.Answer]] = {
    "transformers": peer_process.transformers,
    "rwkv": peer_process.rwkv,
}


def check_peer(
    name: str, path: Path, config: ModelConfig, ids: list[int], logits: Tensor, n_prompt: int, tolerance: float
) -> Check:
    """Compares logits with a peer's, which runs in float32 in a process of its own: its memory ends with it.

    Args:
        name: of the peer, see `PEERS`.
        path: of the checkpoint.
        config: its numbers.
        ids: T tokens, a prompt and what was written after it.
        logits: (T, V), ours.
        n_prompt: tokens of the prompt.
        tolerance: the largest difference allowed, of the largest logit.
    """
    if reason := _cannot_run(name, path, config):
        return Check(name, "skipped", f"not checked: {reason}")
    title = f"{name} {version(name)}"
    try:
        # Spawned, not forked: nothing of torch's threads and of our memory comes along.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            answer, memory = pool.submit(PEERS[name], path, ids).result()
    except Exception as error:  # a peer may raise anything, or be killed for want of memory
        first_line = next(iter(str(error).splitlines()), "")
        return Check(name, "skipped", f"not checked: {title} failed: {type(error).__name__}: {first_line}")
    theirs = torch.from_numpy(answer)
    difference = relative_difference(logits, theirs)
    written = slice(n_prompt - 1, None)
    same = (logits[written].argmax(-1) == theirs[written].argmax(-1)).tolist()
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


def _cannot_run(name: str, path: Path, config: ModelConfig) -> str | None:
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed"
    if name == "transformers" and not (path / "config.json").is_file():
        return "transformers reads Hugging Face directories"
    if name == "rwkv" and config.n_att != config.n_embd:
        return f"the rwkv package needs time mixing as wide as the model, got {config.n_att} and {config.n_embd}"
    if name == "rwkv" and config.layer_norm_eps != 1e-5:
        return f"the rwkv package knows one layer_norm_epsilon, 1e-5, got {config.layer_norm_eps:g}"
    return None
