"""Sampling without transfers to the host, so that it can be captured in a CUDA graph with the step before it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rwkv_engine.generation.distribution import documented, rwkv_package
from rwkv_engine.generation.params import SamplingParams
from rwkv_engine.ops.draw_tokens import draw_tokens, inverse_cdf
from rwkv_engine.ops.most_likely import most_likely
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
        if self.compat is None:
            return self.ids(logits, positions, seeds, samples)
        return where_finite(logits, self.ids(logits.double(), positions, seeds, samples))

    def ids(self, logits: Tensor, positions: Tensor, seeds: Tensor, samples: Tensor) -> Tensor:
        """The same for logits (B, V) float64 with -inf for banned tokens, which are not checked with `compat`."""
        if self.temperature == 0 and self.compat is None:
            return most_likely(logits)
        if self.compat is None:
            rows = of_rows((self,) * len(logits), logits.device)
            return draw_tokens(logits, *rows, (seeds, samples, positions))
        return inverse_cdf(self.probabilities(logits), philox_uniform(seeds, samples, positions))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that `ids` samples from, see the module `distribution`."""
        if self.compat == "rwkv":
            return rwkv_package(logits, self.temperature, self.top_k, self.top_p)
        return documented(logits, self.temperature, self.top_k, self.top_p, self.min_p)


@lru_cache(maxsize=64)  # copying to a GPU waits for its work, and rows seldom change from one token to the next
def of_rows(draws: tuple[Draw, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The temperature, top-k, top-p and min-p of B rows as `draw_tokens` takes them, (B,) float64, but top-k int64.

    Those with `compat` are sampled in another way, and their parameters mean something else. They get the most likely
    token, which takes the least time.
    """
    own = [Draw(0) if draw.compat else draw for draw in draws]
    values = [[draw.temperature, draw.top_p, draw.min_p] for draw in own]
    temperatures, top_p, min_p = torch.tensor(values, dtype=torch.float64).t().contiguous().to(device)
    return temperatures, torch.tensor([draw.top_k for draw in own], dtype=torch.int64).to(device), top_p, min_p


def where_finite(logits: Tensor, ids: Tensor) -> Tensor:
    """The ids (B,), with -1 for rows of the logits (B, V) that contain NaN or infinity."""
    # A sum takes a tenth of the time of looking at each logit; in float64 finite float32 numbers do not overflow.
    is_finite = logits.sum(dim=-1, dtype=torch.float64).isfinite()
    # Not torch.where, which would copy the number from the host; a CUDA graph cannot.
    return ids.masked_fill(~is_finite, -1)
