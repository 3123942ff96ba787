"""draw_tokens: samples a token for each row of logits, whose rows may have different parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define
from rwkv_engine.ops.philox_uniform import philox_uniform_reference

DRAW_TOKENS_SCHEMA = (
    "draw_tokens(Tensor logits, Tensor temperatures, Tensor top_k, Tensor top_p, Tensor min_p,"
    " Tensor[] draws, Tensor? allowed=None) -> Tensor"
)
# The integer that stands for the largest probability of a row; the sum of 2^17 of them fits into int64.
LARGEST = 2.0**45
NONE_ALLOWED = -2  # in place of an id


def draw_tokens(
    logits: Tensor,
    temperatures: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    draws: Tensor | tuple[Tensor, Tensor, Tensor],
    allowed: Tensor | None = None,
) -> Tensor:
    """Samples one id for each row, after temperature, top-k, top-p and min-p; see `SamplingParams`.

    Probabilities are float64, and their sums those of `whole_numbers`. A kernel and the reference may give different
    ids only where a sum comes as near to a limit as their exponentials differ, by 2^-52.

    Args:
        logits: (B, V), float32, or float64 with -inf for banned tokens.
        temperatures: (B,) float64, at least 0; 0 takes the most likely token, the lowest id among equals.
        top_k: (B,) int64; 0 is off.
        top_p: (B,) float64, above 0; 1 is off.
        min_p: (B,) float64; 0 is off.
        draws: (B,) float64, random numbers in [0, 1); or the seeds, samples and positions that `philox_uniform` makes
            them of, which on a GPU takes no kernel of its own.
        allowed: the tokens that may be sampled, before all parameters apply: (B, ceil(V / 32)) int32, bit i % 32 of
            word i // 32 for token i. None allows all.

    Returns:
        (B,) int64, -1 for rows with NaN or infinity, unless it is -inf in float64, and for rows of which every token is
        banned, which with `allowed` get NONE_ALLOWED, as those do of which no token is allowed.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match; or, on the CPU, a temperature or top-p is out of range.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.draw_tokens(
        logits, temperatures, top_k, top_p, min_p, [draws] if isinstance(draws, Tensor) else draws, allowed
    )


def draw_tokens_reference(
    logits: Tensor,
    temperatures: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    draws: Sequence[Tensor],
    allowed: Tensor | None = None,
) -> Tensor:
    """`draw_tokens` in plain torch."""
    is_sound = ((logits < torch.inf) & ((logits > -torch.inf) | (logits.dtype == torch.float64))).all(dim=-1)
    if allowed is not None:
        logits = logits.masked_fill(~unpacked(allowed, logits.shape[1]), -torch.inf)
    largest = logits.amax(dim=-1, keepdim=True)
    greedy = temperatures == 0
    divisors = torch.where(greedy, 1, temperatures).unsqueeze(-1)
    weights = torch.exp((logits.double() - largest.double()) / divisors)
    # A stable sort: among equals the lower id comes first.
    ordered, ids = weights.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.where((ranks < top_k.unsqueeze(-1)) | (top_k == 0).unsqueeze(-1), 0)
    whole = whole_numbers(ordered)
    cumulative = whole.cumsum(dim=-1)
    is_kept = (cumulative - whole < top_p.unsqueeze(-1) * cumulative[:, -1:].double()) | (top_p == 1).unsqueeze(-1)
    ordered = ordered.where(is_kept & (ordered >= min_p.unsqueeze(-1)), 0)
    numbers = draws[0] if len(draws) == 1 else philox_uniform_reference(*draws)
    sampled = inverse_cdf(torch.zeros_like(weights).scatter(-1, ids, ordered), numbers)
    ids = torch.where(greedy, logits.argmax(dim=-1), sampled)
    none = -1 if allowed is None else NONE_ALLOWED
    return ids.masked_fill(largest.squeeze(-1) == -torch.inf, none).masked_fill(~is_sound, -1)


def unpacked(words: Tensor, n_vocab: int) -> Tensor:
    """(B, V) bool: the bits of (B, ceil(V / 32)) int32 words, on their device."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> bits & 1).bool().flatten(1)[:, :n_vocab]


def whole_numbers(probs: Tensor) -> Tensor:
    """Converts probabilities (B, V) to int64; the largest of a row becomes 2^45.

    Sums of integers are exact, so they do not depend on the device or its order of additions, and zeros add nothing.
    Sums of floating-point numbers on a GPU guarantee none of this.
    """
    return (probs / probs.amax(dim=-1, keepdim=True) * LARGEST).round().to(torch.int64)


def inverse_cdf(probs: Tensor, draws: Tensor) -> Tensor:
    """The first id of each row at which the cumulative sum exceeds the given fraction of the total.

    Args:
        probs: (B, V) float64, not necessarily normalised, not all zero.
        draws: the fractions, (B,) float64 in [0, 1).

    Returns:
        (B,) int64; never an id whose probability is 0.
    """
    cumulative = whole_numbers(probs).cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = (draws.unsqueeze(-1) * total).to(torch.int64)
    # A product may be rounded up to the total itself, which no sum exceeds.
    return torch.searchsorted(cumulative, torch.minimum(target, total - 1), right=True).squeeze(-1)


define(DRAW_TOKENS_SCHEMA, draw_tokens_reference, lambda logits, *_: logits.new_empty(len(logits), dtype=torch.int64))
