"""Layers that the CPU kernels run without looking at their parameters again.

A step's operator is given all parameters of all layers, hundreds of tensors, which it converts and checks. After a
token has read all weights, these are in no cache, so that takes several percent of the time of a token. `prepared`
does it once for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from rwkv_engine.core.layer_states import LayerStates
from rwkv_engine.core.state import LayerState
from rwkv_engine.models.block import Block
from rwkv_engine.native import cpu_kernels

# By the first layer. A block's own attribute would be copied and stored with it.
_known: WeakKeyDictionary[Block, tuple[Sequence[Any], Any]] = WeakKeyDictionary()


@cache
def _is_registered(name: str) -> bool:
    """Whether the CPU library has this class, which one that was built from some of the sources has not."""
    try:
        getattr(torch.classes.rwkv_engine, name)
    except RuntimeError:
        return False
    return True


def whole_fields(name: str, states: Sequence[LayerState], fields_of: Sequence[str]) -> list[Tensor] | None:
    """The fields (B, L, *shape) of these names, if one call of the class `name` can run all layers; otherwise None."""
    is_watched = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None  # they see operators only
    if not isinstance(states, LayerStates) or torch.is_grad_enabled() or is_watched:
        return None
    fields = [states.whole.fields[field] for field in fields_of]
    is_served = all(type(field) is Tensor and field.is_cpu and field.is_contiguous() for field in fields)
    return fields if is_served and cpu_kernels.status().path and _is_registered(name) else None


def prepared(
    name: str,
    blocks: Sequence[Block],
    fixed: Sequence[Any],
    lists: Callable[[], tuple[list[Tensor], list[Tensor | None]]],
) -> Any:
    """The layers as the CPU library's class `name` keeps them; `forget` drops them.

    Args:
        name: "PreparedLayers4" or "PreparedLayers7".
        blocks: all layers of a model.
        fixed: what was derived from the parameters of each layer; another object means other parameters.
        lists: the parameters and scales of all layers, as the step's operator takes them.
    """
    known, layers = _known.get(blocks[0], ((), None))
    if len(known) != len(fixed) or not all(map(is_, known, fixed)):
        parameters, scales = lists()
        layers = getattr(torch.classes.rwkv_engine, name)(parameters, scales, blocks[0].ln1.eps)
        _known[blocks[0]] = list(fixed), layers
    return layers


def forget(block: Block) -> None:
    """Drops what `prepared` keeps of the parameters of layers that begin with this one."""
    _known.pop(block, None)
