"""Logits to token ids."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv_engine.errors import RequestError
from rwkv_engine.generation import distribution
from rwkv_engine.generation.params import SamplingParams
from rwkv_engine.generation.philox import uniform


class History:
    """What the model has written in each of B texts, for the penalties.

    Attributes:
        seen: (B, V) bool, the tokens written.
        counts: (B, V) float64, how often, older occurrences counting less.
    """

    def __init__(self, batch: int, n_vocab: int, device: torch.device):
        self.seen = torch.zeros(batch, n_vocab, dtype=torch.bool, device=device)
        self.counts = torch.zeros(batch, n_vocab, dtype=torch.float64, device=device)

    def add(self, tokens: Sequence[int], decay: float, uncounted: Collection[int]) -> None:
        """One token more for each row; those in `uncounted` are seen and count for nothing."""
        self.counts *= decay
        for row, token in enumerate(tokens):
            self.seen[row, token] = True
            self.counts[row, token] += token not in uncounted


@dataclass(frozen=True)
class Logprob:
    """Log-probabilities, in nats, of a token that was drawn and of the likeliest ones, likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Draws tokens; a draw depends on a row's logits, history, seed, sample and position, and on nothing else."""

    def __init__(self, params: SamplingParams, uncounted: Collection[int] = ()):
        """`uncounted`: ids whose repetition the frequency penalty overlooks."""
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.uncounted = uncounted

    def sample(
        self,
        logits: Tensor,
        positions: Sequence[int],
        samples: Sequence[int],
        history: History | None = None,
    ) -> list[int]:
        """One token for each row, which is added to the history.

        Args:
            logits: (B, V).
            positions: for each row, how many tokens come before the one to be drawn.
            samples: for each row, which of several samples of one prompt it is.
            history: of these rows; None where nothing penalises.

        Raises:
            RequestError: logits that are not finite, ids outside the vocabulary, or nothing left to draw.
        """
        if not bool(torch.isfinite(logits).all()):
            raise RequestError("the model's logits are not finite (NaN or Inf); is the checkpoint damaged?")
        if self.params.temperature == 0 and self.params.compat is None:
            tokens = self.adjusted(logits, history).argmax(dim=-1).tolist()
        else:
            probs = self.probabilities(logits, history)
            draws = [uniform(self.seed, s, p) for s, p in zip(samples, positions, strict=True)]
            tokens = inverse_cdf(probs, torch.tensor(draws, dtype=torch.float64, device=logits.device))
        if history:
            history.add(tokens, self.params.penalty_decay, self.uncounted)
        return tokens

    def probabilities(self, logits: Tensor, history: History | None = None) -> Tensor:
        """The distribution a draw is made from, float64 (B, V), zero where something cut; not normalised."""
        order = distribution.rwkv_package if self.params.compat == "rwkv" else distribution.documented
        return order(self.adjusted(logits, history), self.params)

    def adjusted(self, logits: Tensor, history: History | None = None) -> Tensor:
        """Logits with bias, ban and penalties, float64 (B, V).

        Raises:
            RequestError: an id outside the vocabulary, or every token banned.
        """
        params = self.params
        logits = logits.double()
        if params.logit_bias:
            logits = logits.clone()
            for token, bias in params.logit_bias.items():
                logits[:, self._checked("logit_bias", token, logits)] += bias
        if history:
            penalty = params.presence_penalty * history.seen + params.frequency_penalty * history.counts
            logits = logits - penalty
        if params.banned_tokens:
            banned = [self._checked("banned_tokens", token, logits) for token in params.banned_tokens]
            if len(set(banned)) == logits.shape[-1]:
                raise RequestError("banned_tokens: every token of the vocabulary is banned")
            logits = logits.index_fill(-1, torch.tensor(banned, device=logits.device), -torch.inf)
        return logits

    def logprobs(self, logits: Tensor, tokens: Sequence[int]) -> list[Logprob]:
        """What `SamplingParams.logprobs` asks for, of each row (B, V) and the token drawn from it."""
        logits = torch.log_softmax(logits.double(), dim=-1)
        top, ids = logits.topk(min(self.params.logprobs or 0, logits.shape[-1]), dim=-1)
        return [
            Logprob(token, row[token].item(), tuple(zip(row_ids.tolist(), row_top.tolist(), strict=True)))
            for token, row, row_ids, row_top in zip(tokens, logits, ids, top, strict=True)
        ]

    @staticmethod
    def _checked(name: str, token: int, logits: Tensor) -> int:
        if token >= logits.shape[-1]:
            raise RequestError(f"{name}: got token {token}, expected ids below {logits.shape[-1]}, the vocabulary")
        return token


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
