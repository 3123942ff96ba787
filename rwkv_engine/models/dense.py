"""From what kernels read back to plain matrices, which have gradients and the names of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rwkv_engine.errors import StrategyError
from rwkv_engine.models.model import Model
from rwkv_engine.models.weights import Dense, InputMajor, Tiled


def make_dense(model: Model, copies: bool = False) -> None:
    """Replaces the matrices of a model, in place and one at a time, so there never is a second copy of the whole.

    The numbers stay the same, bit for bit.

    Args:
        model: placed; its parameters have no gradients, and get none by this.
        copies: copy what is a parameter already, too: what lies in a mapped file may not be written to.

    Raises:
        StrategyError: it holds int8 weights.
    """
    if is_quantized(model):
        raise StrategyError(
            "int8 weights have no gradient and no place in a state dict; load the model in a float type"
        )
    for name in model.config.tensors():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, Tiled | InputMajor):
            model.set_submodule(path, dense_of(module))
        elif copies:
            setattr(module, attribute, nn.Parameter(getattr(module, attribute).detach().clone(), requires_grad=False))


def dense_of(matrix: Tiled | InputMajor) -> Dense:
    """The same numbers row after row, a copy; int8 ones in float32."""
    weight = matrix.weight.clone(memory_format=torch.contiguous_format)
    outputs, inputs = weight.shape
    with torch.device("meta"):  # no random numbers for what is replaced at once
        dense = Dense(inputs, outputs)
    dense.weight = nn.Parameter(weight, requires_grad=False)
    return dense


def is_quantized(model: Model) -> bool:
    """Whether any matrix is int8."""
    return any(isinstance(m, Tiled | InputMajor) and m.scales is not None for m in model.modules())


def checkpoint_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a placed model by their original names, as a checkpoint has them, matrices one copy at a time."""
    for name in model.config.tensors():
        path, _, attribute = name.rpartition(".")
        yield name, getattr(model.get_submodule(path), attribute).detach()


def checkpoint_dtypes(model: Model) -> dict[str, torch.dtype]:
    """Of the same tensors, none of them made."""
    dtypes = {}
    for name in model.config.tensors():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        is_packed = isinstance(module, Tiled | InputMajor)
        dtypes[name] = next(module.parameters()).dtype if is_packed else getattr(module, attribute).dtype
    return dtypes
