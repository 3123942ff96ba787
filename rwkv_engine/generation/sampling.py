"""Logits to token ids."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

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
        _require(0 <= self.temperature < math.inf, "temperature", self.temperature, "a number >= 0")
        _require(self.top_k >= 0, "top_k", self.top_k, "an integer >= 0 (0 is off)")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "a number in (0, 1] (1.0 is off)")
        _require(self.seed is None or 0 <= self.seed < 2**64, "seed", self.seed, "an integer in [0, 2**64) or None")


def _require(condition: bool, name: str, got: object, expected: str) -> None:
    if not condition:
        raise RequestError(f"{name}: got {got}, expected {expected}")


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
        probs = torch.softmax(logits.double() / params.temperature, dim=-1)
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
