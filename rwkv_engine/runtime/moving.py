"""Moves a placed model to other devices or dtypes, and converts its matrices to the kernels' memory layout there."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from rwkv_engine.core.config import Role, TensorSpec
from rwkv_engine.core.weight_format import float_format
from rwkv_engine.models import Model
from rwkv_engine.models.arrange import Arranged, arrange, form_of
from rwkv_engine.models.dense import dense_of
from rwkv_engine.models.weights import Dense, InputMajor, Tiled
from rwkv_engine.runtime.finite import check_finite
from rwkv_engine.runtime.loader import has_kernels, put

Matrix = Dense | Tiled | InputMajor


def move_model(model: Model, to: Callable[[Tensor], Tensor]) -> None:
    """Moves a model that is not trainable, in place, one tensor at a time.

    Quantised matrices and vectors keep their dtype.

    Args:
        model: a placed model.
        to: maps a tensor to another device, another floating-point dtype, or both, as `nn.Module.to` does.

    Raises:
        CheckpointError: weights are too large for the dtype; nothing has been moved then.
        StrategyError: the model has streamed layers.
    """
    model.require_resident("a model on another device or in another dtype")
    specs = model.config.tensors()
    for name, spec in specs.items():
        parameter = _parameter_of(model, name)
        _, dtype = _target(parameter, to)
        if spec.role is not Role.VECTOR and dtype != parameter.dtype:
            # This is correct in every form: the zeros that pad tiles do not make the extremes larger.
            check_finite(name, parameter.detach(), dtype)
    for name, spec in specs.items():
        parameter = _parameter_of(model, name)
        device, dtype = _target(parameter, to)
        if form_of(spec.role) != "rows":
            _move_matrix(model, name, spec, device, dtype)
        else:
            moved = parameter.detach().to(device, parameter.dtype if spec.role is Role.VECTOR else dtype)
            put(model, name, spec, "rows", Arranged(moved))
    model.forget()


def stays(model: Model, to: Callable[[Tensor], Tensor]) -> bool:
    """Whether `to` leaves the device and dtype of every tensor as they are."""
    wanted = (name for name, spec in model.config.tensors().items() if spec.role is not Role.VECTOR)
    return all(_target(p, to) == (p.device, p.dtype) for p in (_parameter_of(model, name) for name in wanted))


def _move_matrix(model: Model, name: str, spec: TensorSpec, device: torch.device, dtype: torch.dtype) -> None:
    held = _parameter_of(model, name)
    if (device, dtype) == (held.device, held.dtype):
        return
    path = name.rpartition(".")[0]
    matrix = cast(Matrix, model.get_submodule(path))
    form = form_of(spec.role)
    scales = None if isinstance(matrix, Dense) else matrix.scales
    if scales is not None:  # quantised matrices have the same layout on every device, with or without kernels
        put(model, name, spec, form, Arranged(held.detach().to(device), scales.detach().to(device)))
        return
    dense = matrix if isinstance(matrix, Dense) else dense_of(matrix)
    if has_kernels(str(device)):
        put(model, name, spec, form, arrange(dense.weight.detach().to(device), form, float_format(dtype)))
    else:
        dense.weight = nn.Parameter(dense.weight.detach().to(device, dtype), requires_grad=False)
        model.set_submodule(path, dense)


def _parameter_of(model: Model, name: str) -> nn.Parameter:
    """The parameter that holds a tensor, in any form."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, Tiled):
        return module.tiles
    return module.rows if isinstance(module, InputMajor) else cast(nn.Parameter, getattr(module, attribute))


def _target(tensor: Tensor, to: Callable[[Tensor], Tensor]) -> tuple[torch.device, torch.dtype]:
    """The device and dtype to which `to` moves this tensor."""
    moved = to(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
    return moved.device, moved.dtype
