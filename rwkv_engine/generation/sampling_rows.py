"""Samples the next tokens of texts whose parameters differ, from the logits of one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkv_engine.generation.draw import Draw, where_finite
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.sampling import History
from rwkv_engine.ops.philox_uniform import as_int64


def sample_rows(logits: Tensor, requests: Sequence[Request]) -> list[int]:
    """Samples one token for each request, and adds it to the request's history. A token does not depend on the others.

    Rows that share temperature, top-k, top-p and min-p are sampled together.

    Args:
        logits: (B, V), one row for each request.
        requests: B requests; their parameters must fit the vocabulary, see `Sampler.check`.

    Returns:
        B ids, -1 where the logits are not finite.
    """
    groups: dict[Draw, list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault(request.sampler.draw, []).append(row)
    keys = [(request.position, as_int64(request.sampler.seed), as_int64(request.sample)) for request in requests]
    numbers = torch.tensor(keys, dtype=torch.int64, device=logits.device)  # in one transfer
    adjusted = _adjusted(logits, requests)
    if len(groups) == 1:
        [draw] = groups
        ids = draw.ids(adjusted, *numbers.unbind(1))
    else:
        ids = torch.empty(len(requests), dtype=torch.int64, device=logits.device)
        for draw, rows in groups.items():
            which = torch.tensor(rows, dtype=torch.int64, device=logits.device)
            ids[which] = draw.ids(adjusted[which], *numbers[which].unbind(1))
    tokens = where_finite(logits, ids).tolist()
    for request, token in zip(requests, tokens, strict=True):
        if request.history and token >= 0:
            request.history.add([token], request.sampler.params.penalty_decay, request.sampler.uncounted)
    return tokens


def _adjusted(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """The logits (B, V) float64 after each row's own biases, bans and penalties."""
    adjusted = logits.double()
    for row, request in enumerate(requests):
        params = request.sampler.params
        if params.penalizes and request.history is None:
            request.history = History(1, logits.shape[-1], logits.device)
        if request.history or params.logit_bias or params.banned_tokens:
            adjusted[row] = request.sampler.adjusted(logits[row : row + 1], request.history)[0]
    return adjusted
