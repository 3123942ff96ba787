"""The operator library: Python defines each schema with its reference; compiled kernels register for their device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "rwkv_engine"
_library = torch.library.Library(NAMESPACE, "DEF")


def define(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Registers one operator with its torch reference, and a function that returns empty results of the right shapes.

    The reference is CompositeExplicitAutograd, so it runs on every device for which no compiled kernel is registered
    under the same name. `fake` gives `torch.compile` the shapes without computing anything.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def register_gradient(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Registers the derivative of the operator `name`."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)


def wants_gradient(*arguments: object) -> bool:
    """Whether autograd is enabled and one of the arguments requires a gradient."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def refuse_gradients(*arguments: object) -> None:
    """Refuses arguments that require a gradient, for operators without one: torch would silently return none.

    Raises:
        RuntimeError: autograd is enabled and an argument requires a gradient.
    """
    if wants_gradient(*arguments):
        raise RuntimeError("a mixing step has no gradient; load the model with trainable=True, or use torch.no_grad()")


def kernels_serve(x: Tensor, *others: Tensor | None) -> bool:
    """Whether to call the operator: the inputs are float32 and need no gradient. Otherwise the torch reference runs."""
    return x.dtype == torch.float32 and not wants_gradient(x, *others)
