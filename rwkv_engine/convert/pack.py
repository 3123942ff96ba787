"""Writes packed files, whose matrices have the memory layout of the kernels, see `checkpoints.packed`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.checkpoints.memory import conversion_memory_reported
from rwkv_engine.checkpoints.packed import Packing, pack_tensors
from rwkv_engine.checkpoints.packed_matrix import PackedMatrix
from rwkv_engine.checkpoints.rescaled import divided_note, looks_divided
from rwkv_engine.convert.measured_noise import fits_in_memory, measured_noise
from rwkv_engine.core import Strategy
from rwkv_engine.core.config import Role
from rwkv_engine.core.weight_format import float_format
from rwkv_engine.errors import CheckpointError, RequestError
from rwkv_engine.notices import log
from rwkv_engine.progress import Progress
from rwkv_engine.runtime.loader import converted, rounding_note
from rwkv_engine.runtime.mixed_formats import BUDGET, Measure, mixed
from rwkv_engine.runtime.plan import plan_tensors
from rwkv_engine.storage.atomic import file_problem

SUFFIX = ".safetensors"
# The formats of `quantize`.
FORMATS = ("i8", "i4")


def pack(
    model: str | Path, output: str | Path, strategy: str | None = None, progress: Progress | None = None
) -> Packing:
    """Writes a packed file, completely or not at all; holds one matrix at a time.

    Args:
        model: path of a checkpoint, see `Checkpoint`; it may be packed already.
        output: the file, whose name must end in .safetensors; an existing one is replaced.
        strategy: the strategy under which the file will be loaded; each layer is packed in the precision that it
            assigns. By default all layers get the precision in which the head is stored.
        progress: called after each tensor with the parameters written so far and in all.

    Returns:
        The metadata of the file.

    Raises:
        CheckpointError: the model is damaged, or contains NaN, infinity or numbers too large for the strategy; or the
            file cannot be written.
        OutOfMemoryError: a tensor does not fit into memory.
        StrategyError: the strategy cannot be parsed, or does not fit this model.
    """
    output = _checked(output)
    checkpoint = Checkpoint.open(model)
    return _write(checkpoint, output, strategy or f"cpu {_stored_precision(checkpoint)}", progress)


def quantize(
    model: str | Path,
    output: str | Path,
    weights: str = "i8",
    embedding: str | None = None,
    progress: Progress | None = None,
    int8_budget: float = BUDGET,
) -> Packing:
    """Writes a packed file whose matrices are quantised, completely or not at all.

    It holds one matrix at a time, except that int4 needs the model in float32 for a moment, to measure which matrices
    suffer; if there is not enough memory for that, they are chosen by their weights alone.

    Args:
        model: path of a checkpoint that is not quantised.
        output: the file, whose name must end in .safetensors; an existing one is replaced.
        weights: the format of the matrices: "i8", or "i4", which keeps some of them in int8, see
            `runtime.mixed_formats`; a notice tells which.
        embedding: the dtype of the embedding, "fp32", "fp16" or "bf16"; by default that of the checkpoint. The
            embedding is never quantised.
        progress: called after each tensor with the parameters written so far and in all.
        int8_budget: what the matrices that stay int8 may add to the bytes of int4, as a share of those bytes: 0 keeps
            none, and about 0.8 all. It has no effect on other formats.

    Returns:
        The metadata of the file.

    Raises:
        CheckpointError: as for `pack`, or the model is quantised already.
        RequestError: the budget is not a number from 0 to 1.
    """
    if not 0 <= int8_budget <= 1:  # NaN is refused too
        raise RequestError(f"int8_budget: got {int8_budget}, expected a share from 0 to 1")
    output = _checked(output)
    checkpoint = Checkpoint.open(model)
    if checkpoint.packing and checkpoint.packing.is_quantised:
        raise CheckpointError(
            f"{model}: is quantised already ({checkpoint.packing}), and quantising it twice would add errors; give the"
            " model it was made from, or copy it with rwkv-engine pack"
        )
    measure = None
    if weights == "i4":
        if fits_in_memory(checkpoint):
            measure = partial(measured_noise, checkpoint)
        else:
            log.warning(f"{checkpoint.path}: too large to measure its sensitivity; int8 is chosen by the weights alone")
    strategy = f"cpu {embedding or _word(checkpoint, 'emb.weight')}{weights}"
    return _write(checkpoint, output, strategy, progress, measure, int8_budget)


def _checked(output: str | Path) -> Path:
    output = Path(output)
    if output.suffix != SUFFIX:
        raise CheckpointError(f"{output}: expected a name that ends in {SUFFIX}, by which packed files are recognised")
    if problem := file_problem(output):
        raise CheckpointError(f"{output}: {problem}")
    return output


def _write(
    checkpoint: Checkpoint,
    output: Path,
    strategy: str,
    progress: Progress | None,
    measure: Measure | None = None,
    int8_budget: float = BUDGET,
) -> Packing:
    config = checkpoint.config
    placements = Strategy.parse(strategy).place(config)
    plans, mixture = mixed(checkpoint, plan_tensors(config, placements), int8_budget, measure)
    if mixture:
        log.warning(f"{checkpoint.path}: {mixture}")
    if note := rounding_note(checkpoint, placements):
        log.warning(f"{checkpoint.path}: packed, {checkpoint.packing}{note}")
    if looks_divided(checkpoint):
        log.warning(divided_note(checkpoint))
    matrices = {
        name: PackedMatrix(plan.spec.shape, plan.form, plan.weights.name)
        for name, plan in plans.items()
        if plan.spec.role is not Role.VECTOR
    }
    shapes = {}
    for name, plan in plans.items():
        shapes[f"{name}.{plan.form}" if name in matrices else name] = (plan.weights.storage, plan.shape)
        if n_scales := plan.weights.n_scales(plan.spec.shape):
            shapes[f"{name}.scales"] = (torch.float32, (n_scales,))

    def arranged() -> Iterator[Tensor]:
        done = 0
        for name, plan in plans.items():
            values, scales = converted(checkpoint, name, replace(plan, device="cpu"))
            yield values
            del values  # before the next ones are made
            if scales is not None:
                yield scales
            done += math.prod(plan.spec.shape)
            if progress:
                progress(done, config.n_params)

    packing = Packing(checkpoint.fingerprint(), config.settings(), matrices, config.version)
    with conversion_memory_reported(checkpoint.path):
        pack_tensors(output, packing, shapes, arranged())
    return packing


def _stored_precision(checkpoint: Checkpoint) -> str:
    packing = checkpoint.packing
    if packing and packing.matrices["head.weight"].dtype in FORMATS:
        return f"{_word(checkpoint, 'emb.weight')}{packing.quantised}"
    return _word(checkpoint, "head.weight")


def _word(checkpoint: Checkpoint, name: str) -> str:
    """The name of the format in which the checkpoint stores a tensor that is not quantised."""
    return float_format(checkpoint.read(name).dtype).name
