"""States of RWKV-4 as other programs keep them.

| layout         | what it is                                      | in this order                                    |
|----------------|-------------------------------------------------|--------------------------------------------------|
| `rwkv`         | list of 5 L tensors, (C,) or (A,); one sequence | each layer's att_shift, num, den, max, ffn_shift |
| `transformers` | list of five tensors (B, C, L)                  | ffn_shift, att_shift, num, den, max              |
| `rwkv.cpp`     | one buffer of 5 L C float32; one sequence       | each layer's ffn_shift, att_shift, num, den, max |

All five mean the same everywhere. An empty past is a maximum of -1e30 here and in most places, -1e38 or the lowest
float32 in others: e to any of them is 0, so what is lower than -1e30 becomes that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from rwkv_engine.core.config import ModelConfig
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
    """A state as another program takes it; it shares no memory with what is returned.

    Args:
        state: of one sequence, but for `transformers`.
        layout: "rwkv", "transformers" or "rwkv.cpp".
        shift_dtype: of `att_shift` and `ffn_shift`: `rwkv` and `transformers` want them in the type they compute in.
            The recurrence is float32 everywhere, as is all of `rwkv.cpp`.

    Returns:
        Tensors as in the table above, contiguous, on the state's device; the buffer of `rwkv.cpp` as (5 L C,) in main
        memory.

    Raises:
        RequestError: an unknown layout, or one that cannot hold this state.
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
    # Copies, for whoever takes them may write into them; a whole field at once, for this is done for every token.
    dtypes = [shift_dtype if name.endswith("shift") else torch.float32 for name in order]
    if layout == "transformers":
        return [_copied(t.transpose(1, 2), dtype) for t, dtype in zip(fields.values(), dtypes, strict=True)]
    layers = [_copied(t[0], dtype).unbind() for t, dtype in zip(fields.values(), dtypes, strict=True)]
    return [tensor for layer in zip(*layers, strict=True) for tensor in layer]


def from_layout(
    tensors: Sequence[Tensor] | Tensor,
    layout: str,
    config: ModelConfig,
    position: int | Sequence[int] | Tensor | None = None,
    fingerprint: str = "",
) -> State:
    """A state of another program's; it shares no memory with what is given.

    Args:
        tensors: as in the table above, of any floating-point type; a buffer of `rwkv.cpp` as (5 L C,) or (5 L, C),
            which may be an array of NumPy.
        layout: "rwkv", "transformers" or "rwkv.cpp".
        config: of the model it is for.
        position: how many tokens each sequence has read, which no layout tells; None counts from 0. Only draws with a
            seed depend on it.
        fingerprint: of the model it comes from, which no layout tells; empty: taken by any of this size.

    Returns:
        Float32, on the device of the first tensor.

    Raises:
        RequestError: an unknown layout, one that cannot hold states of this model, or tensors that are no such state.
    """
    order = _order(layout)
    if not isinstance(config, Rwkv4Config):
        raise RequestError(f"layout {layout}: holds states of RWKV-4, got the config of an RWKV-{config.version}")
    n_layer, n_embd = config.n_layer, config.n_embd
    if layout != "rwkv":
        _require_one_width(layout, n_embd, config.n_att)
    if layout == "rwkv":
        widths = [n_embd if name.endswith("shift") else config.n_att for name in order]
        given = _as_tensors(layout, tensors, 5 * n_layer, f"5 for each of {n_layer} layers")
        _check(layout, given, [(width,) for width in widths] * n_layer)
        fields = [torch.stack(given[i::5]).unsqueeze(0) for i in range(5)]
    elif layout == "transformers":
        given = _as_tensors(layout, tensors, 5, "see `to_layout`")
        batch = given[0].shape[0] if given[0].ndim else 0
        _check(layout, given, [(batch, n_embd, n_layer)] * 5)
        fields = [t.transpose(1, 2) for t in given]
    else:
        [buffer] = _as_tensors(layout, [tensors], 1, "the buffer")
        shape = (5 * n_layer, n_embd) if buffer.ndim == 2 else (5 * n_layer * n_embd,)
        _check(layout, [buffer], [shape])
        fields = [t.unsqueeze(0) for t in buffer.reshape(n_layer, 5, n_embd).unbind(1)]
    state = {name: _copied(t, torch.float32) for name, t in zip(order, fields, strict=True)}
    state["wkv_max"] = state["wkv_max"].clamp(min=EMPTY_MAX)
    # The smallest and the largest number tell, in one pass, and a GPU is waited for once.
    ends = torch.stack([end for tensor in state.values() for end in torch.aminmax(tensor.detach())])
    if not torch.isfinite(ends).all():
        names = ", ".join(name for name, tensor in state.items() if not torch.isfinite(tensor).all())
        raise RequestError(f"layout {layout}: NaN or infinity in {names}, expected numbers; start from None")
    return State(state, _positions(position, fields[0]), fingerprint)


def _order(layout: str) -> tuple[str, ...]:
    if layout not in _ORDERS:
        raise RequestError(f"layout: got {layout!r}, expected one of {', '.join(_ORDERS)}")
    return _ORDERS[layout]


def _require_one_width(layout: str, n_embd: int, n_att: int) -> None:
    """The other programs have room for n_embd numbers where a state has n_att, and fail to run such models."""
    if n_att != n_embd:
        raise RequestError(
            f"layout {layout}: has one width for all, got a model with n_embd {n_embd} and n_att {n_att}; only the"
            " layout rwkv, and State.save, can hold its states"
        )


def _as_tensors(layout: str, given: Any, n: int, which: str) -> list[Tensor]:
    """As n tensors on one device, of any shape and type."""
    if isinstance(given, Tensor) or not isinstance(given, Sequence):
        raise RequestError(f"layout {layout}: got {type(given).__name__}, expected a list of {n} tensors ({which})")
    if len(given) != n:
        raise RequestError(f"layout {layout}: got {len(given)} tensors, expected {n} ({which}); another model's state?")
    try:
        tensors = [tensor if isinstance(tensor, Tensor) else torch.as_tensor(tensor) for tensor in given]
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(sorted({type(t).__name__ for t in given}))
        raise RequestError(f"layout {layout}: got {kinds}, expected tensors: {error}") from error
    device = tensors[0].device
    return [tensor if tensor.device == device else tensor.to(device) for tensor in tensors]


def _check(layout: str, tensors: list[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    for i, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        if tensor.shape != shape or not tensor.is_floating_point() or 0 in shape:
            got = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
            raise RequestError(
                f"layout {layout}, tensor {i}: got {got}, expected floating-point numbers"
                f" {shape if 0 not in shape else '(B, C, L)'}; is it another model's state?"
            )


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _positions(position: int | Sequence[int] | Tensor | None, like: Tensor) -> Tensor:
    batch = like.shape[0]
    try:
        given = torch.as_tensor(0 if position is None else position)
        if given.is_floating_point() or given.dtype == torch.bool or given.shape not in ((), (batch,)):
            raise ValueError(f"{given.dtype} {tuple(given.shape)}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"position: got {position!r}, expected an integer, or one for each of {batch} sequences"
        ) from error
    return given.to(like.device, torch.int64).expand(batch).clone()
