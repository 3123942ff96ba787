"""Other programs to compare with: the `rwkv` package for RWKV-4 and RWKV-7, and transformers for RWKV-4.

A baseline runs only in a process of its own: importing one changes the environment and torch's global flags, and its
memory ends with the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import ModelConfig, Strategy
from rwkv_engine.core.rwkv7 import Rwkv7Config
from rwkv_engine.core.strategy import DTYPES
from rwkv_engine.native.toolkit import find_nvcc
from rwkv_engine.notices import log
from rwkv_engine.ops.int8 import in_floats

BASELINES = ("rwkv", "transformers")


def is_installed(name: str) -> bool:
    """Whether a baseline can be imported, without importing it."""
    return find_spec(name) is not None


def unsupported(name: str, config: ModelConfig) -> str | None:
    """Why a baseline cannot run a model, in one clause; None if it can."""
    versions = {"rwkv": (4, 7), "transformers": (4,)}[name]
    if config.version not in versions:
        known = " and ".join(f"RWKV-{version}" for version in versions)
        return f"{name} is compared with for {known}, this is RWKV-{config.version}"
    if name == "rwkv" and config.n_att != config.n_embd:
        return f"the rwkv package needs time mixing as wide as the model, got {config.n_att} and {config.n_embd}"
    return None


def rwkv_tensors(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors as the `rwkv` package wants them, in floats; those of a plain `.pth` as it reads them."""
    checkpoint = Checkpoint.open(path)
    if path.suffix == ".pth" and path.is_file():
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        if tensors.keys() == set(checkpoint.names):  # not with a trainer's prefixes, or inside its dictionary
            return tensors
    return {name: in_floats(checkpoint.read(name), checkpoint.read_scales(name)) for name in checkpoint.names}


def load_rwkv(path: Path, tensors: dict[str, Tensor], strategy: str, **environment: str) -> Any:
    """The model class of the `rwkv` package, loaded.

    The package opens `.pth` files only, so the tensors are given to it in memory; it consumes the dictionary.

    Args:
        path: where the tensors are from, for the package's messages.
        tensors: by their original names.
        strategy: in the package's grammar.
        environment: environment variables that the package reads when it is imported, such as RWKV_JIT_ON="0"; unless
            RWKV_CUDA_ON is given, it builds no kernel.
    """
    is_rwkv7 = Rwkv7Config.matches(tensors)
    os.environ.update({"RWKV_CUDA_ON": "0", "RWKV_V7_ON": str(int(is_rwkv7))} | environment)
    package: Any = import_module("rwkv.model")
    load = torch.load
    try:
        package.torch.load = lambda *_, **__: tensors
        return package.RWKV(model=str(path), strategy=strategy, **({} if is_rwkv7 else {"verbose": False}))
    finally:
        package.torch.load = load


def _build_kernel(is_rwkv7: bool) -> bool:
    """Whether the `rwkv` package has its CUDA kernel, which it compiles when it is imported."""
    if nvcc := find_nvcc():
        os.environ["CUDA_HOME"] = str(nvcc.root)  # without it torch does not find the headers if nvcc is a script
    if "rwkv.model" not in sys.modules:
        os.environ.update(RWKV_CUDA_ON="1", RWKV_JIT_ON="1", RWKV_V7_ON=str(int(is_rwkv7)))
        try:
            import_module("rwkv.model")
        except ModuleNotFoundError:
            raise
        except Exception as error:
            log.warning(f"rwkv without its CUDA kernel, which cannot be built: {error}"[:500])
    return hasattr(sys.modules.get("rwkv.model"), "WKV_7" if is_rwkv7 else "cuda_wkv")


class RwkvPackage:
    """The `rwkv` package in its fastest setting: TorchScript, and on a GPU its own kernel if it can be compiled."""

    def __init__(self, path: Path, strategy: str):
        """Loads any checkpoint. Both programs have the same grammar of strategies."""
        # Mapped tensors are copied, because the package reads its own files into memory too.
        tensors = {name: t if path.suffix == ".pth" else t.clone() for name, t in rwkv_tensors(path).items()}
        kernel = "cuda" in strategy and _build_kernel(Rwkv7Config.matches(tensors))
        self.model = load_rwkv(path, tensors, strategy, RWKV_JIT_ON="1", RWKV_CUDA_ON=str(int(kernel)))
        self.about = {"version": version("rwkv")} | (
            {"kernels": "its own" if kernel else "none"} if "cuda" in strategy else {}
        )
        self.device = strategy
        self._state: Any = None

    def prefill(self, ids: list[int]) -> None:
        """Reads a prompt from an empty state."""
        self.model.forward(ids, None)

    def decode(self, ids: list[int]) -> None:
        """Reads one token after the other, continuing from the last call."""
        for token in ids:
            _, self._state = self.model.forward([token], self._state)

    def generate(
        self, prompt: Sequence[int], tokens: int, seed: int, temperature: float, top_p: float
    ) -> Iterator[int]:
        """Continues a prompt with the package's own sampling, as its `PIPELINE.generate` does."""
        pipeline: Any = import_module("rwkv.utils").PIPELINE
        np.random.seed(seed)  # of the package's generator
        logits, state = self.model.forward(list(prompt), None)
        for n in range(1, tokens + 1):
            token = pipeline.sample_logits(None, logits, temperature, top_p)
            yield token
            if n < tokens:
                logits, state = self.model.forward([token], state)


class Transformers:
    """`RwkvForCausalLM` of transformers, on one device."""

    def __init__(self, path: Path, strategy: str):
        """Loads any checkpoint tensor by tensor, to hold it in memory only once; the strategy has one dense segment."""
        package: Any = import_module("transformers")
        checkpoint = Checkpoint.open(path)
        [segment] = Strategy.parse(strategy).segments
        # Rescaling would divide the weights. It prevents overflow in float16, which random weights do not cause.
        settings = package.RwkvConfig(**checkpoint.config.settings(), rescale_every=0)
        with torch.device("meta"):
            self.model = package.RwkvForCausalLM(settings)
        tensors = {}
        for name, spec in checkpoint.specs.items():
            stored = checkpoint.read(name)
            copied = stored.to(segment.device, DTYPES[segment.dtype], copy=True)
            tensors[checkpoint.config.to_hugging_face(name)] = copied.view(spec.file_shape)
            checkpoint.release(stored)
        self.model.load_state_dict(tensors, assign=True)
        self.model.eval()
        self.about = {"version": version("transformers")}
        self.device = segment.device
        self._state: Any = None

    @torch.no_grad()
    def prefill(self, ids: list[int]) -> None:
        """Reads a prompt from an empty state."""
        self.model(torch.tensor([ids], device=self.device), use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def decode(self, ids: list[int]) -> None:
        """Reads one token after the other, continuing from the last call."""
        for token in ids:
            answer = self.model(torch.tensor([[token]], device=self.device), state=self._state, use_cache=True)
            self._state = answer.state
