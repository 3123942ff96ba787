"""Adjusted logits to the distribution a token is drawn from: our order, and that of the rwkv package."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rwkv_engine.generation.params import SamplingParams


def documented(logits: Tensor, params: SamplingParams) -> Tensor:
    """Temperature, top-k, top-p, min-p.

    Args:
        logits: float64 (B, V), already biased, banned (-inf) and penalised.
        params: with a temperature above 0.

    Returns:
        Float64 (B, V), zero where something cut; not normalised.
    """
    logits = logits - logits.amax(dim=-1, keepdim=True)  # before the division: a tiny temperature must not overflow
    probs = torch.softmax(logits / params.temperature, dim=-1)
    if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
        return probs
    # A stable sort: among equals the lower id comes first, on every device.
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
    if params.top_k:
        ordered[:, params.top_k :] = 0
    if params.top_p < 1.0:
        before = ordered.cumsum(dim=-1) - ordered
        ordered[before >= params.top_p * ordered.sum(dim=-1, keepdim=True)] = 0
    ordered[ordered < params.min_p * ordered[:, :1]] = 0
    return torch.zeros_like(probs).scatter(-1, ids, ordered)


def rwkv_package(logits: Tensor, params: SamplingParams) -> Tensor:
    """What the rwkv package (0.8, on the CPU) draws from. Arguments and result as for `documented`.

    Its ways, kept on purpose: top-p first, on probabilities no temperature has touched, where all tokens as likely as
    the last one kept are kept too; then top-k; then the temperature, as a power. All in float32, so a `top_p` of 1.0,
    which the sum may miss by a rounding, often takes the likeliest token alone. A temperature or a `top_p` of 0 takes
    the likeliest, drawn among equals.
    """
    greedy = params.temperature == 0
    rows = []
    for row in torch.softmax(logits.float(), dim=-1).cpu().numpy():
        ascending = row.argsort()
        reached = row[ascending[::-1]].cumsum() >= (0.0 if greedy else params.top_p)
        kept = row * (row >= row[ascending[::-1][reached.argmax()]])  # argmax is 0 where the sum reaches nothing
        if params.top_k:
            kept[ascending[: -params.top_k]] = 0
        rows.append(kept if greedy else kept ** (1.0 / params.temperature))
    return torch.from_numpy(np.stack(rows)).to(logits)
