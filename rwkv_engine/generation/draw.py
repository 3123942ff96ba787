"""Sampling without transfers to the host, so that it can be captured in a CUDA graph with the step before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv_engine.generation.distribution import documented, rwkv_package
from rwkv_engine.generation.params import SamplingParams
from rwkv_engine.ops.draw_tokens import draw_tokens, inverse_cdf
from rwkv_engine.ops.philox_uniform import philox_uniform


@dataclass(frozen=True)
class Draw:
    """Samples a token after temperature, top-k, top-p and min-p; see `SamplingParams`.

    With `compat` it transfers data to the host, and cannot be captured.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    compat: str | None = None

    @classmethod
    def of(cls, params: SamplingParams) -> Draw:
        """The part of the parameters that applies after biases, bans and penalties."""
        return cls(params.temperature, params.top_k, params.top_p, params.min_p, params.compat)

    def __call__(self, logits: Tensor, positions: Tensor, seeds: Tensor, samples: Tensor) -> Tensor:
        """Samples one id for each row.

        Args:
            logits: (B, V), as a model returns them.
            positions, seeds, samples: (B,) int64, see `ops.philox_uniform`.

        Returns:
            (B,) int64, -1 for rows whose logits are not all finite.
        """
        return where_finite(logits, self.ids(logits.double(), positions, seeds, samples))

    def ids(self, logits: Tensor, positions: Tensor, seeds: Tensor, samples: Tensor) -> Tensor:
        """The same for logits (B, V) float64 with -inf for banned tokens; does not check that they are finite."""
        if self.temperature == 0 and self.compat is None:
            return logits.argmax(dim=-1)
        draws = philox_uniform(seeds, samples, positions)
        if self.compat is None and logits.is_cpu:  # where one kernel does it all
            temperatures, top_k = torch.full_like(draws, self.temperature), torch.full_like(seeds, self.top_k)
            top_p, min_p = torch.full_like(draws, self.top_p), torch.full_like(draws, self.min_p)
            return draw_tokens(logits, temperatures, top_k, top_p, min_p, draws)
        return inverse_cdf(self.probabilities(logits), draws)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that `ids` samples from, see the module `distribution`."""
        if self.compat == "rwkv":
            return rwkv_package(logits, self.temperature, self.top_k, self.top_p)
        return documented(logits, self.temperature, self.top_k, self.top_p, self.min_p)


def where_finite(logits: Tensor, ids: Tensor) -> Tensor:
    """The ids (B,), with -1 for rows of the logits (B, V) that contain NaN or infinity."""
    # Not torch.where, which would copy the number from the host; a CUDA graph cannot.
    # The extremes are finite exactly where all are, and found in a fraction of the time of isfinite.
    return ids.masked_fill(~(torch.isfinite(logits.amax(dim=-1)) & torch.isfinite(logits.amin(dim=-1))), -1)
