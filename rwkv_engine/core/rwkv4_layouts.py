"""Converts states of RWKV-4 to and from the layouts of other programs.

| layout         | content                                         | order                                            |
|----------------|-------------------------------------------------|--------------------------------------------------|
| `rwkv`         | list of 5 L tensors, (C,) or (A,); one sequence | each layer's att_shift, num, den, max, ffn_shift |
| `transformers` | list of five tensors (B, C, L)                  | ffn_shift, att_shift, num, den, max              |
| `rwkv.cpp`     | one buffer of 5 L C float32; one sequence       | each layer's ffn_shift, att_shift, num, den, max |

The five fields have the same meaning in all of them. Before the first token, `max` is -1e30 here and in most programs,
and -1e38 or the lowest float32 in others. Its exponential is 0 in each case, so lower values are raised to -1e30.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.layout_tensors import as_tensors, check_shapes, copied, positions, require_finite
from rwkv_engine.core.rwkv4 import EMPTY_MAX, Rwkv4Config
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError

_ORDERS = {
    "rwkv": ("att_shift", "wkv_num", "wkv_den", "wkv_max", "ffn_shift"),
    "transformers": ("ffn_shift", "att_shift", "wkv_num", "wkv_den", "wkv_max"),
    "rwkv.cpp": ("ffn_shift", "att_shift", "wkv_num", "wkv_den", "wkv_max"),
}


@overload
def to_layout(
    state: State, layout: Literal["rwkv", "transformers"], *, shift_dtype: torch.dtype = ...
) -> list[Tensor]: ...
@overload
def to_layout(state: State, layout: Literal["rwkv.cpp"], *, shift_dtype: torch.dtype = ...) -> Tensor: ...
@overload
def to_layout(state: State, layout: str, *, shift_dtype: torch.dtype = ...) -> list[Tensor] | Tensor: ...
def to_layout(state: State, layout: str, *, shift_dtype: torch.dtype = torch.float32) -> list[Tensor] | Tensor:
    """Converts a state to the layout of another program. The result shares no memory with the state.

    Args:
        state: the state of one sequence, or with "transformers" of any number.
        layout: "rwkv", "transformers" or "rwkv.cpp".
        shift_dtype: the dtype of `att_shift` and `ffn_shift`; `rwkv` and `transformers` expect the dtype in which they
            compute. All other fields, and the whole buffer of `rwkv.cpp`, are float32.

    Returns:
        The tensors of the table above, contiguous, on the state's device; for "rwkv.cpp" one buffer (5 L C,) in main
        memory.

    Raises:
        RequestError: the layout is unknown, or cannot hold this state.
    """
    order = _order(layout)
    if state.fields.keys() != set(order):
        raise RequestError(f"layout {layout}: holds states of RWKV-4, got one with {', '.join(sorted(state.fields))}")
    if layout != "rwkv":
        _require_one_width(layout, state.att_shift.shape[2], state.wkv_num.shape[2])
    if layout != "transformers" and state.batch != 1:
        raise RequestError(
            f"layout {layout}: holds one sequence, got a state of {state.batch}; convert one by one:"
            " state.rows(slice(i, i + 1))"
        )
    fields = {name: state.fields[name] for name in order}
    if layout == "rwkv.cpp":
        return torch.stack([field[0] for field in fields.values()], dim=1).flatten().cpu()
    # These are copies because the caller may write into them. `compat` does this for every token, so each field is
    # copied with one call.
    dtypes = [shift_dtype if name.endswith("shift") else torch.float32 for name in order]
    if layout == "transformers":
        return [copied(t.transpose(1, 2), dtype) for t, dtype in zip(fields.values(), dtypes, strict=True)]
    layers = [copied(t[0], dtype).unbind() for t, dtype in zip(fields.values(), dtypes, strict=True)]
    return [tensor for layer in zip(*layers, strict=True) for tensor in layer]


def from_layout(
    tensors: Sequence[Tensor] | Tensor,
    layout: str,
    config: ModelConfig,
    position: int | Sequence[int] | Tensor | None = None,
    fingerprint: str = "",
) -> State:
    """Converts a state from the layout of another program. The result shares no memory with the arguments.

    Args:
        tensors: the tensors of the table above, of any floating-point dtype; for "rwkv.cpp" a buffer (5 L C,) or
            (5 L, C), which may be a NumPy array.
        layout: "rwkv", "transformers" or "rwkv.cpp".
        config: the sizes of the model that will use the state.
        position: the number of tokens that each sequence has read; None means 0. The layouts do not contain it; only
            sampling with a seed depends on it.
        fingerprint: the fingerprint of the model that the state comes from, which the layouts do not contain. If it is
            empty, every model of this size accepts the state.

    Returns:
        The state, float32, on the device of the first tensor.

    Raises:
        RequestError: the layout is unknown or cannot hold states of this model, or the tensors are not such a state.
    """
    order = _order(layout)
    if not isinstance(config, Rwkv4Config):
        raise RequestError(f"layout {layout}: holds states of RWKV-4, got the config of an RWKV-{config.version}")
    n_layer, n_embd = config.n_layer, config.n_embd
    if layout != "rwkv":
        _require_one_width(layout, n_embd, config.n_att)
    if layout == "rwkv":
        widths = [n_embd if name.endswith("shift") else config.n_att for name in order]
        given = as_tensors(layout, tensors, 5 * n_layer, f"5 for each of {n_layer} layers")
        check_shapes(layout, given, [(width,) for width in widths] * n_layer)
        fields = [torch.stack(given[i::5]).unsqueeze(0) for i in range(5)]
    elif layout == "transformers":
        given = as_tensors(layout, tensors, 5, "see `to_layout`")
        batch = given[0].shape[0] if given[0].ndim else 0
        check_shapes(layout, given, [(batch, n_embd, n_layer)] * 5)
        fields = [t.transpose(1, 2) for t in given]
    else:
        [buffer] = as_tensors(layout, [tensors], 1, "the buffer")
        shape = (5 * n_layer, n_embd) if buffer.ndim == 2 else (5 * n_layer * n_embd,)
        check_shapes(layout, [buffer], [shape])
        fields = [t.unsqueeze(0) for t in buffer.reshape(n_layer, 5, n_embd).unbind(1)]
    state = {name: copied(t, torch.float32) for name, t in zip(order, fields, strict=True)}
    state["wkv_max"] = state["wkv_max"].clamp(min=EMPTY_MAX)
    require_finite(layout, state)
    return State(state, positions(position, fields[0]), fingerprint)


def _order(layout: str) -> tuple[str, ...]:
    if layout not in _ORDERS:
        raise RequestError(f"layout: got {layout!r}, expected one of {', '.join(_ORDERS)}")
    return _ORDERS[layout]


def _require_one_width(layout: str, n_embd: int, n_att: int) -> None:
    """Refuses n_att != n_embd: the other layouts hold n_embd numbers for every field."""
    if n_att != n_embd:
        raise RequestError(
            f"layout {layout}: has one width for all, got a model with n_embd {n_embd} and n_att {n_att}; only the"
            " layout rwkv, and State.save, can hold its states"
        )
