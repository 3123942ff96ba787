"""Logits to token ids."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from rwkv_engine.errors import RequestError
from rwkv_engine.generation.philox import uniform


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, in this order: temperature, top-k, top-p, one draw.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token (the lowest id among equals).
        top_k: only the k likeliest tokens stay; 0 is off.
        top_p: of these, the fewest likeliest whose probabilities sum to at least p stay; 1.0 is off.
        seed: 64 bits; None draws a fresh one, so that each run differs.
        stop_tokens: ids that end the text; they are not part of it.

    Raises:
        RequestError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        require("temperature", self.temperature, Real, lambda x: 0 <= x < math.inf, "a number >= 0")
        require("top_k", self.top_k, Integral, lambda x: x >= 0, "an integer >= 0 (0 is off)")
        require("top_p", self.top_p, Real, lambda x: 0 < x <= 1, "a number in (0, 1] (1.0 is off)")
        if self.seed is not None:
            require("seed", self.seed, Integral, lambda x: 0 <= x < 2**64, "an integer in [0, 2**64) or None")


def require(name: str, got: Any, kind: type, holds: Callable[[Any], bool], expected: str) -> None:
    """Checks one argument.

    Raises:
        RequestError: it is not of the kind, or does not hold.
    """
    if not isinstance(got, kind) or not holds(got):
        raise RequestError(f"{name}: got {got!r}, expected {expected}")


class Sampler:
    """Draws tokens; a draw depends on the logits, the seed, the sample and the position, and on nothing else."""

    def __init__(self, params: SamplingParams):
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed

    def sample(self, logits: Tensor, positions: Sequence[int], samples: Sequence[int]) -> list[int]:
        """One token for each row.

        Args:
            logits: (B, V).
            positions: for each row, how many tokens come before the one to be drawn.
            samples: for each row, which of several samples of one prompt it is.

        Raises:
            RequestError: logits that are not finite.
        """
        if not bool(torch.isfinite(logits).all()):
            raise RequestError("the model's logits are not finite (NaN or Inf); is the checkpoint damaged?")
        if self.params.temperature == 0:
            return logits.argmax(dim=-1).tolist()
        probs = self.probabilities(logits)
        draws = [uniform(self.seed, s, p) for s, p in zip(samples, positions, strict=True)]
        return inverse_cdf(probs, torch.tensor(draws, dtype=torch.float64, device=logits.device))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution a draw is made from, float64 (B, V), zero where top-k or top-p cut; not normalised."""
        params = self.params
        logits = logits.double()
        logits = logits - logits.amax(dim=-1, keepdim=True)  # before the division: a tiny temperature must not overflow
        probs = torch.softmax(logits / params.temperature, dim=-1)
        if params.top_k == 0 and params.top_p == 1.0:
            return probs
        # A stable sort: among equals the lower id comes first, on every device.
        ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
        if params.top_k:
            ordered[:, params.top_k :] = 0
        if params.top_p < 1.0:
            before = ordered.cumsum(dim=-1) - ordered
            ordered[before >= params.top_p * ordered.sum(dim=-1, keepdim=True)] = 0
        return torch.zeros_like(probs).scatter(-1, ids, ordered)


def inverse_cdf(probs: Tensor, draws: Tensor) -> list[int]:
    """For each row the first id, in order, at which the cumulative sum passes u of the total.

    Args:
        probs: (B, V) float64, not necessarily normalised.
        draws: (B,) float64 in [0, 1).
    """
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # u * total may round up to the total itself, which no sum passes.
    target = torch.minimum(draws.unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).tolist()
