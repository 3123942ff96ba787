"""The operator library: schemas live in Python beside their references, kernels register under them by device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "rwkv_engine"
_library = torch.library.Library(NAMESPACE, "DEF")


def define(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Registers one operator with its torch reference and the shapes of what it returns.

    The reference is CompositeExplicitAutograd, so it serves every device until a compiled kernel for that device
    registers itself under the same name and takes over. `fake` gives `torch.compile` the shapes without running a loop.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def register_gradient(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Registers the derivative of the operator `name`."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)


def wants_gradient(*arguments: object) -> bool:
    """Whether autograd would follow one of the arguments."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def refuse_gradients(*arguments: object) -> None:
    """For operators without a derivative: torch would drop it silently.

    Raises:
        RuntimeError: an argument wants one.
    """
    if wants_gradient(*arguments):
        raise RuntimeError("a mixing step has no gradient; load the model with trainable=True, or use torch.no_grad()")


def kernels_serve(x: Tensor, *others: Tensor | None) -> bool:
    """Whether an operator without a derivative may be called, or its torch reference, which also takes float64."""
    return x.dtype == torch.float32 and not wants_gradient(x, *others)
