"""Converts matrices from the kernels' memory layouts back to row-major parameters, for training and state dicts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rwkv_engine.errors import StrategyError
from rwkv_engine.models.model import Model
from rwkv_engine.models.weights import Dense, InputMajor, Tiled


def make_dense(model: Model, copies: bool = False) -> None:
    """Replaces the matrices of a model by row-major ones with the same bits, in place and one at a time.

    Args:
        model: a placed model; the new parameters do not require gradients.
        copies: whether to copy all other parameters too, because those that are views of a mapped file cannot be
            written to.

    Raises:
        StrategyError: the model has quantised weights, or streamed layers.
    """
    model.require_resident("row-major weights")
    if is_quantized(model):
        raise StrategyError(
            "quantised weights have no gradient and no place in a state dict; load the model in a float type"
        )
    for name in model.config.tensors():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, Tiled | InputMajor):
            model.set_submodule(path, dense_of(module))
        elif copies:
            setattr(module, attribute, nn.Parameter(getattr(module, attribute).detach().clone(), requires_grad=False))
    model.forget()


def dense_of(matrix: Tiled | InputMajor) -> Dense:
    """A row-major copy of a matrix; quantised weights are converted to float32."""
    weight = matrix.weight.clone(memory_format=torch.contiguous_format)
    outputs, inputs = weight.shape
    with torch.device("meta"):  # avoids random initialisation of a weight that is replaced at once
        dense = Dense(inputs, outputs)
    dense.weight = nn.Parameter(weight, requires_grad=False)
    return dense


def is_quantized(model: Model) -> bool:
    """Whether any matrix is quantised."""
    return any(isinstance(m, Tiled | InputMajor) and m.scales is not None for m in model.modules())


def checkpoint_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a placed model with their original names, row-major; matrices are copied one at a time.

    Raises:
        StrategyError: the model has streamed layers.
    """
    model.require_resident("the weights of a checkpoint")
    for name in model.config.tensors():
        path, _, attribute = name.rpartition(".")
        yield name, getattr(model.get_submodule(path), attribute).detach()


def checkpoint_dtypes(model: Model) -> dict[str, torch.dtype]:
    """The dtypes of the tensors that `checkpoint_tensors` yields, without copying them."""
    dtypes = {}
    for name in model.config.tensors():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        is_packed = isinstance(module, Tiled | InputMajor)
        dtypes[name] = next(module.parameters()).dtype if is_packed else getattr(module, attribute).dtype
    return dtypes
