"""How many bytes of weights a token reads, counted from the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rwkv_engine.core import ModelConfig
from rwkv_engine.core.config import Role
from rwkv_engine.core.placement import Placement
from rwkv_engine.runtime.plan import plan_tensors


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
    for plan in plan_tensors(config, placements).values():
        spec, weights = plan.spec, plan.weights
        if spec.role is Role.EMBEDDING:
            total += config.n_embd * weights.bytes_per_weight
        else:
            total += plan.nbytes
        if spec.role is Role.SPARSE_MATRIX:  # its scales are read whatever is zero
            total -= zeros[spec.layer] * math.prod(spec.shape) * weights.bytes_per_weight
    return total
