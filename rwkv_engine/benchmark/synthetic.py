"""Models of random weights, whose squared relu has the share of zeros that is asked for.

What a token costs depends on that share, for rows of channel mixing's value matrix whose input is zero are never read;
on nothing else in the weights. So it is forced: one channel of what goes into the key product is constant, by a weight
of 0 and a bias of 1 of the LayerNorm before it, and that channel's column of the key matrix is one number m. The other
channels are of unit variance and their weights N(0, 1/C), so k ~ N(m, 1), and P(k <= 0) is what m makes it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import torch
from torch import Tensor

from rwkv_engine.core import ModelConfig
from rwkv_engine.core.config import Role
from rwkv_engine.errors import CheckpointError

# P(k <= 0) is 6e-16 with this m: no zero is met. The other way round there is nothing but zeros.
FAR = 8.0


def offset(zeros: float) -> float:
    """m, for a share of zeros from 0 to 1."""
    if not 0 < zeros < 1:
        return FAR if zeros == 0 else -FAR
    return -NormalDist().inv_cdf(zeros)


def synthetic_tensors(config: ModelConfig, dtype: torch.dtype, zeros: float, device: str = "cpu") -> dict[str, Tensor]:
    """A checkpoint's tensors in main memory, matrices in `dtype`, vectors in float32; the same at every call.

    Args:
        config: sizes; at least two wide, for one channel is taken.
        dtype: of the matrices.
        zeros: the share of exact zeros in the squared relu.
        device: where numbers are drawn, since a GPU is faster at it; each kind draws others.
    """
    random = torch.Generator(device).manual_seed(0)
    m = offset(zeros)
    # What channel mixing adds to the residual stays near one, whatever m: k^2 is sqrt(E[k^4]) large.
    tame = math.sqrt(m**4 + 6 * m**2 + 3)
    tensors = {}
    for name, spec in config.tensors().items():
        shape = spec.shape
        if spec.role is not Role.VECTOR:
            matrix = torch.randn(shape, generator=random, dtype=torch.float32, device=device).div_(math.sqrt(shape[1]))
            if name.endswith("ffn.key.weight"):
                matrix[:, 0] = m
            elif name.endswith("ffn.value.weight"):
                matrix /= tame
            tensors[name] = matrix.to("cpu", dtype)
        else:
            tensors[name] = _vector(name, shape, random, device).cpu()
    return tensors


def _vector(name: str, shape: tuple[int, ...], random: torch.Generator, device: str) -> Tensor:
    if name.endswith("ffn.time_mix_k"):
        return torch.ones(1, 1, *shape, dtype=torch.float32)  # of this token alone, or the variance would be another
    if "time_mix" in name:
        return torch.rand(1, 1, *shape, generator=random, dtype=torch.float32, device=device)
    if name.endswith("time_decay"):
        return torch.rand(shape, generator=random, dtype=torch.float32, device=device) * 6 - 5
    vector = torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.float32)
    if ".ln2." in name:
        vector[0] = 1 - vector[0]
    return vector


def write_synthetic(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    zeros: float,
    device: str = "cpu",
    save: Callable[[dict[str, Tensor], Path], None] = torch.save,
) -> None:
    """Writes a `.pth`, which every program reads; all of it is in memory meanwhile, and on the disk afterwards.

    Raises:
        CheckpointError: there is no room for it.
    """
    needed, free = config.n_params * dtype.itemsize, shutil.disk_usage(path.parent).free
    if needed > free:
        raise CheckpointError(
            f"{path.parent}: {free / 1e9:.1f} GB free, the synthetic model needs {needed / 1e9:.1f} GB; set TMPDIR to"
            " a larger disk, or give a smaller --shape"
        )
    try:
        save(synthetic_tensors(config, dtype, zeros, device), path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())  # or it would be written back while clocks run
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the synthetic model cannot be written: {error}") from error
