"""Converts states of RWKV-7 to and from the layout of the `rwkv` package.

It is a list of 3 L tensors for one sequence: each layer's att_shift (C,), wkv (H, N, N) and ffn_shift (C,). The matrix
of a head has values as rows and keys as columns, as here; see `ops.wkv7`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.layout_tensors import as_tensors, check_shapes, copied, positions, require_finite
from rwkv_engine.core.rwkv7 import Rwkv7Config
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError

_ORDER = ("att_shift", "wkv", "ffn_shift")


def to_layout(state: State, layout: str = "rwkv", *, shift_dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Converts a state to the package's layout. The result shares no memory with the state.

    Args:
        state: the state of one sequence.
        layout: "rwkv".
        shift_dtype: the dtype of `att_shift` and `ffn_shift`; the package expects the dtype in which it computes.

    Returns:
        The 3 L tensors, contiguous, on the state's device; `wkv` is float32.

    Raises:
        RequestError: the layout is unknown, or cannot hold this state.
    """
    _require_known(layout)
    if state.fields.keys() != set(_ORDER):
        raise RequestError(f"layout {layout}: holds states of RWKV-7, got one with {', '.join(sorted(state.fields))}")
    if state.batch != 1:
        raise RequestError(
            f"layout {layout}: holds one sequence, got a state of {state.batch}; convert one by one:"
            " state.rows(slice(i, i + 1))"
        )
    dtypes = [shift_dtype if name.endswith("shift") else torch.float32 for name in _ORDER]
    layers = [copied(state.fields[name][0], dtype).unbind() for name, dtype in zip(_ORDER, dtypes, strict=True)]
    return [tensor for layer in zip(*layers, strict=True) for tensor in layer]


def from_layout(
    tensors: Sequence[Tensor],
    layout: str,
    config: ModelConfig,
    position: int | Sequence[int] | Tensor | None = None,
    fingerprint: str = "",
) -> State:
    """Converts a state from the package's layout. The result shares no memory with the arguments.

    Args:
        tensors: the 3 L tensors, of any floating-point dtype.
        layout: "rwkv".
        config: the sizes of the model that will use the state.
        position: as for `rwkv4_layouts.from_layout`.
        fingerprint: as for `rwkv4_layouts.from_layout`.

    Returns:
        The state, float32, on the device of the first tensor.

    Raises:
        RequestError: the layout is unknown, the config is not of RWKV-7, or the tensors are not such a state.
    """
    _require_known(layout)
    if not isinstance(config, Rwkv7Config):
        raise RequestError(f"layout {layout}: holds states of RWKV-7, got the config of an RWKV-{config.version}")
    shapes = {field.name: field.shape for field in config.state_fields()}
    given = as_tensors(layout, tensors, 3 * config.n_layer, f"3 for each of {config.n_layer} layers")
    check_shapes(layout, given, [shapes[name] for name in _ORDER] * config.n_layer)
    fields = {name: torch.stack(given[i::3]).unsqueeze(0).float() for i, name in enumerate(_ORDER)}
    require_finite(layout, fields)
    return State(fields, positions(position, fields["wkv"]), fingerprint)


def _require_known(layout: str) -> None:
    if layout != "rwkv":
        raise RequestError(f"layout: got {layout!r}, expected rwkv, the only one for states of RWKV-7")
