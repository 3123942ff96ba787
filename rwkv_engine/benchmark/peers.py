"""Other programs as subjects; each only in a process of its own, for importing one changes torch's global flags."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import ModelConfig, Strategy
from rwkv_engine.core.strategy import DTYPES
from rwkv_engine.errors import RequestError
from rwkv_engine.native.toolkit import find_nvcc
from rwkv_engine.notices import log
from rwkv_engine.verification.peer_models import load_rwkv, rwkv_tensors

PEERS = ("rwkv", "transformers")


def float_strategy(strategy: str) -> str:
    """The same without int8 and int4: `cuda fp16i8 *10 -> cpu fp32` is `cuda fp16 *10 -> cpu fp32`."""
    return " -> ".join(str(replace(segment, weight_format="dense")) for segment in Strategy.parse(strategy).segments)


def check_peer(name: str, strategy: str, config: ModelConfig) -> None:
    """Refuses what a peer cannot run.

    Raises:
        RequestError: it is not installed, or knows no such model or strategy.
    """
    if find_spec(name) is None:
        raise RequestError(f"compare: {name} is not installed; pip install 'rwkv-engine[bench]'")
    segments = Strategy.parse(strategy).segments
    if name == "rwkv":
        if config.n_att != config.n_embd:
            raise RequestError(
                f"compare: the rwkv package needs time mixing as wide as the model, got {config.n_att} and"
                f" {config.n_embd}"
            )
        if not segments:
            raise RequestError(f"compare: the rwkv package knows no strategy {strategy!r}; give --compare-strategy")
    elif len(segments) != 1 or segments[0].weight_format != "dense" or segments[0].streams:
        raise RequestError(
            f"compare: transformers runs on one device in fp32, bf16 or fp16, got {strategy!r}; give --compare-strategy"
        )


def _build_kernel() -> bool:
    """Whether the package has compiled its CUDA kernel, which it does when it is imported, once for all strategies."""
    if nvcc := find_nvcc():
        os.environ["CUDA_HOME"] = str(nvcc.root)  # of its own torch finds no headers where nvcc is a script
    if "rwkv.model" not in sys.modules:
        os.environ.update(RWKV_CUDA_ON="1", RWKV_JIT_ON="1", RWKV_V7_ON="0")
        try:
            import_module("rwkv.model")
        except ModuleNotFoundError:
            raise
        except Exception as error:
            log.warning(f"rwkv without its CUDA kernel, which cannot be built: {error}"[:500])
    return hasattr(sys.modules.get("rwkv.model"), "cuda_wkv")


class RwkvPackage:
    """The `rwkv` package with its TorchScript, and on a GPU with its own kernel if that can be compiled."""

    def __init__(self, path: Path, strategy: str):
        """Loads the model."""
        kernel = "cuda" in strategy and _build_kernel()
        # Copies of what is mapped: the package's own files are read into memory too.
        tensors = {name: t if path.suffix == ".pth" else t.clone() for name, t in rwkv_tensors(path).items()}
        self.model = load_rwkv(path, tensors, strategy, RWKV_JIT_ON="1", RWKV_CUDA_ON=str(int(kernel)))
        self.about = {"version": version("rwkv")} | (
            {"kernels": "its own" if kernel else "none"} if "cuda" in strategy else {}
        )
        self.device = strategy
        self._state: Any = None

    def prefill(self, ids: list[int]) -> None:
        """See `Subject`."""
        self.model.forward(ids, None)

    def decode(self, ids: list[int]) -> None:
        """See `Subject`."""
        for token in ids:
            _, self._state = self.model.forward([token], self._state)


class Transformers:
    """`RwkvForCausalLM`."""

    def __init__(self, path: Path, strategy: str):
        """Loads the model, from any checkpoint; tensor by tensor, so that it is in memory once."""
        package: Any = import_module("transformers")
        checkpoint = Checkpoint.open(path)
        device, precision = strategy.split()
        dtype = DTYPES[precision]
        # Rescaling is for float16 and would divide weights again at every load; random weights do not overflow.
        settings = package.RwkvConfig(**checkpoint.config.settings(), rescale_every=0)
        with torch.device("meta"):
            self.model = package.RwkvForCausalLM(settings)
        tensors = {}
        for name in checkpoint.names:
            stored = checkpoint.read(name)
            shape = (1, 1, *stored.shape) if "time_mix" in name else stored.shape
            tensors[checkpoint.config.to_hugging_face(name)] = stored.to(device, dtype, copy=True).view(shape)
            checkpoint.release(stored)
        self.model.load_state_dict(tensors, assign=True)
        self.model.eval()
        self.about = {"version": version("transformers")}
        self.device = device
        self._state: Any = None

    @torch.no_grad()
    def prefill(self, ids: list[int]) -> None:
        """See `Subject`."""
        self.model(torch.tensor([ids], device=self.device), use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def decode(self, ids: list[int]) -> None:
        """See `Subject`."""
        for token in ids:
            answer = self.model(torch.tensor([[token]], device=self.device), state=self._state, use_cache=True)
            self._state = answer.state
