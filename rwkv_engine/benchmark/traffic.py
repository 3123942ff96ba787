"""How many bytes of weights a token reads, counted from the plan."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_engine.core import ModelConfig
from rwkv_engine.core.strategy import Placement
from rwkv_engine.runtime.loader import layer_of

SCALE = 4  # bytes; an int8 matrix has one for each row and one for each column


def matrix_bytes(shape: tuple[int, ...], placement: Placement, share: float = 1.0) -> float:
    """Of a matrix (N outputs, K inputs), if only a `share` of its inputs is read.

    Scales are read whatever the share. int4 has a 16-bit scale and minimum for 64 weights, and no others.
    """
    n, k = shape
    if placement.weight_format == "i8":
        return n * k * share + SCALE * (n + k)
    bits = 4.5 if placement.weight_format == "i4" else 8 * placement.dtype.itemsize
    return n * k * share * bits / 8


def bytes_per_token(config: ModelConfig, placements: Sequence[Placement], zeros: Sequence[float]) -> float:
    """What one token of one sequence reads: every matrix, every vector, one row of the embedding.

    Padding of tiles and the state are not counted (both below 0.1 % of it in the 169M shape).

    Args:
        config: sizes.
        placements: of the layers, and a last one of the head.
        zeros: for each layer the share of channel mixing's squared relu that is zero, if its kernel skips
            these; else 0.
    """
    total = 0.0
    for name, shape in config.tensor_shapes().items():
        layer = layer_of(name, config.n_layer)
        if name == "emb.weight":
            total += config.n_embd * placements[layer].dtype.itemsize
        elif len(shape) == 2:
            share = 1 - zeros[layer] if name.endswith("ffn.value.weight") else 1.0
            total += matrix_bytes(shape, placements[layer], share)
        else:
            total += 4 * shape[0]
    return total
