"""How many bytes of weights a token reads, counted from the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rwkv_engine.core import ModelConfig
from rwkv_engine.core.strategy import Placement
from rwkv_engine.runtime.loader import layer_of


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
        else:
            total += placements[layer].nbytes({name: shape})
        if name.endswith("ffn.value.weight"):  # its scales are read whatever is zero
            total -= zeros[layer] * math.prod(shape) * placements[layer].weight_bytes
    return total
