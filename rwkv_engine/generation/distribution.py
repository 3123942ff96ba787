"""Adjusted logits to the distribution a token is drawn from: our order, and that of the rwkv package."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Of a probability as a whole number; 2^17 of them fit into int64.
LARGEST = 2.0**45


def documented(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Temperature, top-k, top-p, min-p, as in `SamplingParams`.

    Args:
        logits: float64 (B, V), already biased, banned (-inf) and penalised.
        temperature: above 0.
        top_k, top_p, min_p: 0, 1.0 and 0.0 are off.

    Returns:
        Float64 (B, V), zero where something cut; not normalised.
    """
    logits = logits - logits.amax(dim=-1, keepdim=True)  # before the division: a tiny temperature must not overflow
    probs = torch.softmax(logits / temperature, dim=-1)
    if top_k == 0 and top_p == 1.0 and min_p == 0.0:
        return probs
    # A stable sort: among equals the lower id comes first, on every device.
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered[:, top_k:].zero_()
    if top_p < 1.0:
        whole = whole_numbers(ordered)
        cumulative = whole.cumsum(dim=-1)
        ordered.masked_fill_(cumulative - whole >= top_p * cumulative[:, -1:].double(), 0)
    ordered.masked_fill_(ordered < min_p * ordered[:, :1], 0)
    return torch.zeros_like(probs).scatter(-1, ids, ordered)


def whole_numbers(probs: Tensor) -> Tensor:
    """Probabilities (B, V) to int64, the largest of a row to 2^45.

    Their sums are exact, so they depend neither on the order in which a device adds nor on the device, and what is zero
    adds nothing; a GPU's sums of floating-point numbers promise none of this.
    """
    return (probs / probs.amax(dim=-1, keepdim=True) * LARGEST).round().to(torch.int64)


def rwkv_package(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """What the rwkv package (0.8, on the CPU) draws from; on the CPU here too. Logits and result as for `documented`.

    Its ways, kept on purpose: top-p first, on probabilities no temperature has touched, where all tokens as likely as
    the last one kept are kept too; then top-k; then the temperature, as a power. All in float32, so a `top_p` of 1.0,
    which the sum may miss by a rounding, often takes the likeliest token alone. A temperature or a `top_p` of 0 takes
    the likeliest, drawn among equals.
    """
    greedy = temperature == 0
    rows = []
    for row in torch.softmax(logits.float(), dim=-1).cpu().numpy():
        ascending = row.argsort()
        reached = row[ascending[::-1]].cumsum() >= (0.0 if greedy else top_p)
        kept = row * (row >= row[ascending[::-1][reached.argmax()]])  # argmax is 0 where the sum reaches nothing
        if top_k:
            kept[ascending[:-top_k]] = 0
        rows.append(kept if greedy else kept ** (1.0 / temperature))
    return torch.from_numpy(np.stack(rows)).to(logits)
