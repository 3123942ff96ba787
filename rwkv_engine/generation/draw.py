"""Logits to ids without asking the host: what a GPU records together with the step that makes the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv_engine.generation.distribution import documented, rwkv_package, whole_numbers
from rwkv_engine.generation.params import SamplingParams
from rwkv_engine.ops.philox_uniform import philox_uniform


@dataclass(frozen=True)
class Draw:
    """Temperature, top-k, top-p, min-p, one draw; see `SamplingParams`. Equal ones draw alike.

    With `compat` it does ask the host, and cannot be recorded.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    compat: str | None = None

    @classmethod
    def of(cls, params: SamplingParams) -> Draw:
        """What parameters ask for once there is neither bias, ban nor penalty."""
        return cls(params.temperature, params.top_k, params.top_p, params.min_p, params.compat)

    def __call__(self, logits: Tensor, positions: Tensor, seeds: Tensor, samples: Tensor) -> Tensor:
        """One id for each row.

        Args:
            logits: (B, V), a model's.
            positions, seeds, samples: (B,) int64, see `ops.philox_uniform`.

        Returns:
            (B,) int64, -1 for rows whose logits are not all finite.
        """
        return where_finite(logits, self.ids(logits.double(), positions, seeds, samples))

    def ids(self, logits: Tensor, positions: Tensor, seeds: Tensor, samples: Tensor) -> Tensor:
        """The same for logits that are float64, and -inf where a token is banned."""
        if self.temperature == 0 and self.compat is None:
            return logits.argmax(dim=-1)
        return inverse_cdf(self.probabilities(logits), philox_uniform(seeds, samples, positions))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution of `ids`, see `distribution`."""
        if self.compat == "rwkv":
            return rwkv_package(logits, self.temperature, self.top_k, self.top_p)
        return documented(logits, self.temperature, self.top_k, self.top_p, self.min_p)


def where_finite(logits: Tensor, ids: Tensor) -> Tensor:
    """The ids, (B,); -1 for rows of logits (B, V) with a NaN or an infinity."""
    return torch.where(torch.isfinite(logits).all(dim=-1), ids, -1)


def inverse_cdf(probs: Tensor, draws: Tensor) -> Tensor:
    """For each row the first id, in order, at which the cumulative sum passes u of the total.

    Args:
        probs: (B, V) float64, not necessarily normalised, not all zero.
        draws: (B,) float64 in [0, 1).

    Returns:
        (B,) int64, never one whose probability is 0.
    """
    cumulative = whole_numbers(probs).cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = (draws.unsqueeze(-1) * total).to(torch.int64)
    # u * total may round up to the total itself, which no sum passes.
    return torch.searchsorted(cumulative, torch.minimum(target, total - 1), right=True).squeeze(-1)
