"""The `rwkv` package's model, made from any checkpoint; only in a process of its own, see `peer_process`."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_engine.checkpoints import Checkpoint


def rwkv_tensors(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors as the package wants them; those of a `.pth` as it reads them itself."""
    if path.suffix == ".pth" and path.is_file():
        return torch.load(path, map_location="cpu", weights_only=True)
    checkpoint = Checkpoint.open(path)
    return {name: checkpoint.read(name) for name in checkpoint.names}


def load_rwkv(path: Path, tensors: dict[str, Tensor], strategy: str, **environment: str) -> Any:
    """The package's own model.

    It opens `.pth` files alone, so tensors are handed to it in memory, and are used up.

    Args:
        path: where the tensors are from, for the package's messages.
        tensors: by their original names.
        strategy: in the package's grammar.
        environment: what it reads when it is imported, such as RWKV_JIT_ON="0"; without RWKV_CUDA_ON it builds nothing.
    """
    os.environ.update({"RWKV_CUDA_ON": "0", "RWKV_V7_ON": "0"} | environment)
    package: Any = import_module("rwkv.model")
    load = torch.load
    try:
        package.torch.load = lambda *_, **__: tensors
        return package.RWKV(model=str(path), strategy=strategy, verbose=False)
    finally:
        package.torch.load = load
