"""From adjusted logits to the distribution that a token is sampled from, in the usual order or the rwkv package's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rwkv_engine.ops.draw_tokens import whole_numbers


def documented(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Applies temperature, top-k, top-p and min-p, in this order, as `SamplingParams` describes them.

    Args:
        logits: (B, V) float64, with biases and penalties applied, and -inf for banned tokens.
        temperature: greater than 0.
        top_k, top_p, min_p: 0, 1.0 and 0.0 are off.

    Returns:
        Probabilities (B, V) float64, zero for tokens that are not kept; not normalised.
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


def rwkv_package(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The distribution of the rwkv package (0.8, on the CPU), computed on the CPU. Arguments as for `documented`.

    Details of the package that are kept: top-p comes first, on the probabilities at temperature 1, and keeps all tokens
    that are as likely as the last one kept; then top-k; then the temperature, as a power of the probabilities.
    Everything is float32, so with a `top_p` of 1.0 often only the most likely token is kept, because the sum misses 1
    by a rounding error. A temperature or a `top_p` of 0 samples among the most likely tokens.
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
