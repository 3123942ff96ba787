"""A placed model to other devices or dtypes, in the form that kernels there read."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from rwkv_engine.models import Rwkv4
from rwkv_engine.models.arrange import Arranged, arrange, form_of
from rwkv_engine.models.dense import dense_of
from rwkv_engine.models.weights import Dense, InputMajor, Tiled
from rwkv_engine.runtime.loader import check_finite, has_kernels, put

Matrix = Dense | Tiled | InputMajor


def move_model(model: Rwkv4, to: Callable[[Tensor], Tensor]) -> None:
    """Moves a model that is not trained, in place, one tensor at a time. What is int8, and vectors, keep their type.

    Args:
        model: placed.
        to: what `nn.Module.to` and its kin do with a tensor: another device, another floating dtype, or both.

    Raises:
        CheckpointError: weights too large for the dtype; nothing has been moved then.
    """
    names = {name: shape for name, shape in model.config.tensor_shapes().items() if len(shape) == 2}
    for name in names:
        parameter = _parameter_of(model, name)
        _, dtype = _target(parameter, to)
        if dtype != parameter.dtype:
            # The smallest and the largest number tell whatever the form; zeros that fill up tiles are neither.
            check_finite(name, parameter.detach(), dtype)
    for name, shape in model.config.tensor_shapes().items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if len(shape) == 2 and not name.startswith("emb."):
            _move_matrix(model, name, shape, cast(Matrix, module), *_target(_parameter_of(model, name), to))
        else:
            tensor = getattr(module, attribute).detach()
            device, dtype = _target(tensor, to)
            moved = tensor.to(device, dtype if len(shape) == 2 else tensor.dtype)
            setattr(module, attribute, nn.Parameter(moved, requires_grad=False))
    forget_places(model)


def forget_places(model: Rwkv4) -> None:
    """To be called when parameters have moved: what a model remembers of where they were, or made of them, is stale."""
    model.__dict__.pop("layout", None)
    for module in model.modules():
        module.__dict__.pop("_decay", None)


def stays(model: Rwkv4, to: Callable[[Tensor], Tensor]) -> bool:
    """Whether `to` would change no tensor's device or dtype."""
    return all(_target(p, to) == (p.device, p.dtype) for p in model.parameters() if p.ndim > 1)


def _move_matrix(
    model: Rwkv4, name: str, shape: tuple[int, ...], matrix: Matrix, device: torch.device, dtype: torch.dtype
) -> None:
    held = _parameter_of(model, name)
    if (device, dtype) == (held.device, held.dtype):
        return
    path = name.rpartition(".")[0]
    form = form_of(name, shape)
    scales = None if isinstance(matrix, Dense) else matrix.scales
    if scales is not None:  # tiles are the same everywhere, and int8 lies in them even where there are no kernels
        put(model, name, shape, form, Arranged(held.detach().to(device), scales.detach().to(device)))
        return
    dense = matrix if isinstance(matrix, Dense) else dense_of(matrix)
    if has_kernels(str(device)):
        put(model, name, shape, form, arrange(dense.weight.detach().to(device), form, dtype))
    else:
        dense.weight = nn.Parameter(dense.weight.detach().to(device, dtype), requires_grad=False)
        model.set_submodule(path, dense)


def _parameter_of(model: Rwkv4, name: str) -> nn.Parameter:
    """That which holds a matrix's numbers, in whatever form."""
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, Tiled):
        return module.tiles
    return module.rows if isinstance(module, InputMajor) else cast(nn.Parameter, module.weight)


def _target(tensor: Tensor, to: Callable[[Tensor], Tensor]) -> tuple[torch.device, torch.dtype]:
    """Where `to` brings a tensor of this device and dtype."""
    moved = to(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
    return moved.device, moved.dtype
