"""Samples the next tokens of texts whose parameters differ, from the logits of one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkv_engine.generation.draw import of_rows, where_finite
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.token_mask import masks_of, none_allowed
from rwkv_engine.ops.draw_tokens import NONE_ALLOWED, draw_tokens, unpacked
from rwkv_engine.runtime.transfer import listed, moved


def sample_rows(logits: Tensor, requests: Sequence[Request]) -> list[int]:
    """Samples one token for each request, and adds it to the request's history. A token does not depend on the others.

    Args:
        logits: (B, V), one row for each request.
        requests: B requests, whose parameters fit the vocabulary.

    Returns:
        B ids, -1 where the logits are not finite, or where no token may be sampled, which is the request's `error`.
    """
    keys = list(zip(*((*request.key, request.position) for request in requests), strict=True))
    numbers = moved(torch.tensor(keys, dtype=torch.int64), logits.device)  # in one transfer
    adjusted, ids = _adjusted(logits, requests), torch.empty(len(requests), dtype=torch.int64, device=logits.device)
    allowed = masks_of(requests, logits.shape[1], logits.device)
    own = [row for row, request in enumerate(requests) if request.sampler.params.compat]
    for row in own:
        seeds, samples, positions = numbers[:, row : row + 1]
        found = adjusted[row : row + 1]
        if allowed is not None:
            found = found.masked_fill(~unpacked(allowed[row : row + 1], logits.shape[1]), -torch.inf)
        drawn = requests[row].sampler.draw.ids(found, positions, seeds, samples)
        ids[row] = drawn.masked_fill(found.amax(dim=-1) == -torch.inf, NONE_ALLOWED)[0]
    if len(own) < len(requests):
        draws = tuple(request.sampler.draw for request in requests)
        drawn = draw_tokens(adjusted, *of_rows(draws, logits.device), (numbers[0], numbers[1], numbers[2]), allowed)
        is_own = torch.tensor([bool(d.compat) for d in draws], device=ids.device) if own else None
        ids = drawn if is_own is None else torch.where(is_own, ids, drawn)
    tokens = without_errors(requests, listed(ids if adjusted is logits else where_finite(logits, ids)))
    for request, token in zip(requests, tokens, strict=True):
        if request.history and token >= 0:
            request.history.add([token], request.sampler.params.penalty_decay, request.sampler.uncounted)
    return tokens


def without_errors(requests: Sequence[Request], ids: Sequence[int]) -> list[int]:
    """The sampled ids, with -1 for requests that have an error, such as that of a text in which no token may follow."""
    for request, token in zip(requests, ids, strict=True):
        if token == NONE_ALLOWED and not request.error:
            request.error = none_allowed(request)
    return [-1 if request.error else token for request, token in zip(requests, ids, strict=True)]


def _adjusted(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """The logits (B, V) as each row's request adjusts them, float64 with -inf for banned tokens; or the same tensor if
    none does. An error is that of its request alone.
    """
    rows = [row for row, request in enumerate(requests) if request.adjusts]
    if not rows:
        return logits
    adjusted = logits.double()
    for row in rows:
        try:
            adjusted[row] = requests[row].adjusted(logits[row : row + 1])[0]
        except Exception as error:
            requests[row].error = error
    return adjusted
