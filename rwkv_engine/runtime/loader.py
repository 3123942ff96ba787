"""Loads a checkpoint under a strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.checkpoints.memory import memory_errors_explained
from rwkv_engine.checkpoints.packed import ALIGNMENT
from rwkv_engine.checkpoints.rescaled import divided_note, looks_divided
from rwkv_engine.core.config import Role, TensorSpec
from rwkv_engine.core.placement import Placement
from rwkv_engine.core.strategy import Strategy
from rwkv_engine.core.weight_format import I4, I8
from rwkv_engine.errors import CheckpointError, StrategyError
from rwkv_engine.models import MODELS, Model
from rwkv_engine.models.arrange import Arranged, arrange
from rwkv_engine.models.weights import InputMajor, Tiled
from rwkv_engine.native import cpu_kernels, cuda_kernels
from rwkv_engine.notices import log
from rwkv_engine.progress import Progress
from rwkv_engine.runtime.finite import check_finite
from rwkv_engine.runtime.mixed_formats import mixed, reader
from rwkv_engine.runtime.plan import TensorPlan, plan_tensors
from rwkv_engine.runtime.streamed import Device, StreamedLayers
from rwkv_engine.runtime.upload import Uploads


@memory_errors_explained
def load_model(
    checkpoint: Checkpoint,
    strategy: Strategy,
    progress: Progress | None = None,
    trainable: bool = False,
    streams_to: Device | None = None,
) -> Model:
    """Copies a checkpoint's tensors to their devices, one at a time, converting and quantising them as needed.

    The tensors of a packed file are used as views of the mapped file where the strategy allows it.

    Args:
        checkpoint: an opened checkpoint.
        strategy: a parsed strategy.
        progress: called after each tensor with the parameters placed so far and in all.
        trainable: whether to keep row-major matrices with gradients, for training; otherwise matrices have the memory
            layout of the kernels, and no gradients.
        streams_to: the device of streamed layers; None is a GPU.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: the file is damaged, or contains NaN, infinity or numbers too large for the strategy.
        OutOfMemoryError: there is not enough memory for the strategy; the message names one that would fit.
        StrategyError: the strategy does not fit the model, or asks to train quantised weights.
    """
    config = checkpoint.config
    placements = strategy.place(config)
    if trainable and (formats := {p.weight_format for p in placements} - {"dense"}):
        raise StrategyError(f"strategy: {strategy}: {formats.pop()} weights have no gradient; train in fp32 or bf16")
    if trainable and not all(p.resident for p in placements):
        raise StrategyError(f"strategy: {strategy}: streamed layers (+) have no gradient; leave the + out")
    fingerprint = checkpoint.fingerprint()
    if looks_divided(checkpoint):
        log.warning(divided_note(checkpoint))
    with torch.device("meta"):
        model = MODELS[type(config)](config, fingerprint)
    # Without compiled kernels tiles only cost time, except for quantised weights, which are always in tiles.
    # `has_kernels` also loads the kernels of a GPU; training needs that of wkv4.
    kernels = {device: has_kernels(device) for device in {p.device for p in placements}}
    uploads, said, done = Uploads(), False, 0
    plans, mixture = mixed(checkpoint, plan_tensors(config, placements))
    if mixture:
        log.warning(f"{checkpoint.path}: {mixture}")
    unpacked = {
        name
        for name, plan in plans.items()
        if trainable or not (kernels[plan.device] or placements[plan.spec.layer].weight_format != "dense")
    }
    plans |= {name: replace(plans[name], form="rows") for name in unpacked}
    streamed = {name: plan for name, plan in plans.items() if plan.streamed}
    layers = StreamedLayers(streamed, streams_to or Device()) if streamed else None
    for name, plan in plans.items():
        placement = placements[plan.spec.layer]
        if plan.streamed:
            plan = replace(plan, device="cpu")
        ready = None if trainable else _ready(checkpoint, name, plan, placement)
        if ready is not None:
            # Packing has checked that it is finite; checking it again would read the whole file.
            placed = _moved(checkpoint, ready, plan.device, uploads)
        else:
            if checkpoint.packing and not said:
                wanted = "training" if trainable else "plain torch" if name in unpacked else str(strategy)
                note = rounding_note(checkpoint, placements)
                log.warning(f"{checkpoint.path}: packed, {checkpoint.packing}; converting it for {wanted}{note}")
                said = True
            placed = converted(checkpoint, name, plan, uploads)
        if plan.streamed:
            assert layers is not None
            placed = layers.put(name, placed)
            if ready is not None:
                checkpoint.release(ready.values)
        put(model, name, plan.spec, plan.form, placed)
        done += math.prod(plan.spec.shape)
        if progress:
            progress(done, config.n_params)
    if layers:
        layers.finish(model)
    return model.eval().requires_grad_(trainable)


def rounding_note(checkpoint: Checkpoint, placements: Sequence[Placement]) -> str:
    """The end of a notice where quantised weights are converted, which does not restore their precision."""
    stored = None if checkpoint.packing is None else checkpoint.packing.quantised
    lost = stored and any(p.weight_format != stored for p in placements)
    return "; its quantised weights keep their rounding errors" if lost else ""


def has_kernels(device: str) -> bool:
    """Whether there are compiled kernels for a device; loads them."""
    kernels = cuda_kernels if device.startswith("cuda") else cpu_kernels
    return kernels.status().kind != "reference"


def converted(checkpoint: Checkpoint, name: str, plan: TensorPlan, uploads: Uploads | None = None) -> Arranged:
    """One tensor, copied from the file to the device, memory layout and number format of its plan.

    Raises:
        CheckpointError: the file is damaged, or contains NaN, infinity or numbers too large for the format.
    """
    uploads = uploads or Uploads()
    whole = checkpoint.read_arranged(name, plan.form) if plan.weights == I4 else None
    if whole is not None and whole.dtype == I4.storage:
        return _copied(checkpoint, name, whole, plan.device, uploads)
    stored, scales = checkpoint.read(name), checkpoint.read_scales(name)
    what = f"{checkpoint.path}: {name}"
    if scales is None:
        check_finite(what, stored, plan.weights.storage if plan.weights.is_float else torch.float32)
    device, moments = plan.device, None
    if plan.weights == I4:
        known = MODELS[type(checkpoint.config)].input_moments(name, reader(checkpoint))
        moments = None if known is None else known.to(device)
    scales = None if scales is None else scales.to(device)
    arranged = arrange(uploads.to(stored, device), plan.form, plan.weights, scales, moments)
    if not (arranged.scales is None or arranged.scales.isfinite().all()):
        kind = "int8" if plan.weights == I8 else "int4"
        raise CheckpointError(f"{what}: holds numbers too large for {kind} with float32 scales; choose a float type")
    checkpoint.release(stored)
    return arranged


def _copied(checkpoint: Checkpoint, name: str, whole: Tensor, device: str, uploads: Uploads) -> Arranged:
    """A copy of an int4 matrix of a packed file: quantising it again would change it."""
    scales = checkpoint.read_arranged_scales(name)
    assert scales is not None
    copied = Arranged(
        *(tensor.clone() if device == "cpu" else uploads.to(tensor, device) for tensor in (whole, scales))
    )
    checkpoint.release(whole)
    return copied


def _ready(checkpoint: Checkpoint, name: str, plan: TensorPlan, placement: Placement) -> Arranged | None:
    """A view of a tensor in a packed file, if the file stores it as planned; otherwise None."""
    values = checkpoint.read_arranged(name, plan.form)
    if values is None:
        return None
    stored, wanted = values.dtype, plan.weights.storage
    if stored != wanted:
        # With quantised matrices, an embedding in any float format that takes no more memory is accepted; rows that are
        # looked up are converted to float32 anyway.
        is_quantised = placement.weight_format != "dense" and stored.is_floating_point
        if not (plan.spec.role is Role.EMBEDDING and is_quantised and stored.itemsize <= wanted.itemsize):
            return None
    elif tuple(values.shape) != plan.shape:
        return None
    ready = Arranged(values, checkpoint.read_arranged_scales(name))
    # Another program may have rewritten the file without the alignment.
    return ready if all(t is None or t.data_ptr() % ALIGNMENT == 0 for t in ready) else None


def _moved(checkpoint: Checkpoint, ready: Arranged, device: str, uploads: Uploads) -> Arranged:
    """The tensor on a device; if that takes a copy, the file's pages are released."""
    scales = None if ready.scales is None else uploads.to(ready.scales, device)
    moved = Arranged(uploads.to(ready.values, device), scales)
    if moved.values is not ready.values:
        checkpoint.release(ready.values)
    return moved


def put(model: Model, name: str, spec: TensorSpec, form: str, placed: Arranged) -> None:
    """Sets a model's tensor by its original name, in one of the forms of `models.arrange`.

    The module to replace must be as `Model.__init__` creates it, or have the same form.
    """
    path, _, attribute = name.rpartition(".")
    values, scales = placed
    if form == "tiles":
        outputs, inputs = spec.shape
        model.set_submodule(path, Tiled(values, outputs, inputs, scales))
    elif form == "input_major":
        model.set_submodule(path, InputMajor(values, spec.shape[0], scales))
    else:
        setattr(model.get_submodule(path), attribute, nn.Parameter(values, requires_grad=False))
