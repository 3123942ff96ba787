"""Samples token ids from logits."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from rwkv_engine.errors import RequestError
from rwkv_engine.generation.draw import Draw, where_finite
from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.generation.params import SamplingParams
from rwkv_engine.ops.philox_uniform import as_int64


class History:
    """The tokens that the model has generated in each of B texts, for the penalties.

    Attributes:
        seen: (B, V) bool, whether a token has been generated.
        counts: (B, V) float64, how often, with older occurrences weighted less by `penalty_decay`.
    """

    def __init__(self, batch: int, n_vocab: int, device: torch.device):
        self.seen = torch.zeros(batch, n_vocab, dtype=torch.bool, device=device)
        self.counts = torch.zeros(batch, n_vocab, dtype=torch.float64, device=device)

    def add(self, tokens: Sequence[int], decay: float, uncounted: Collection[int]) -> None:
        """Adds one token to each row; tokens in `uncounted` are marked as seen but not counted."""
        device = self.counts.device
        ids = torch.tensor(tokens, device=device).unsqueeze(-1)
        more = torch.tensor([float(token not in uncounted) for token in tokens], dtype=torch.float64, device=device)
        self.seen.scatter_(-1, ids, True)
        self.counts *= decay
        self.counts.scatter_(-1, ids, self.counts.gather(-1, ids) + more.unsqueeze(-1))

    def move(self, seen: Tensor, counts: Tensor) -> None:
        """Copies the history to tensors of the same shapes, which have it from now on."""
        self.seen, self.counts = seen.copy_(self.seen), counts.copy_(self.counts)


class Sampler:
    """Samples tokens. A row's token depends only on its logits, history, seed, sample index and position.

    Attributes:
        params: the parameters.
        draw: samples from logits to which biases, bans and penalties have been applied.
        seed: the seed of the random numbers, even if `params` has none.
    """

    def __init__(self, params: SamplingParams, uncounted: Collection[int] = ()):
        """`uncounted`: ids to which the frequency penalty does not apply."""
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.uncounted = uncounted
        self.draw = Draw.of(params)
        self._offsets: dict[tuple[int, torch.device], Tensor] = {}
        self._counters: dict[tuple[tuple[int, ...], torch.device], tuple[Tensor, Tensor]] = {}

    def sample(
        self,
        logits: Tensor,
        positions: Sequence[int] | Tensor,
        samples: Sequence[int],
        history: History | None = None,
    ) -> list[int]:
        """Samples one token for each row, and adds it to the history.

        Args:
            logits: (B, V).
            positions: for each row, the number of tokens before the one to be sampled; int64 if it is a tensor.
            samples: for each row, its index among the samples of one prompt.
            history: the history of these rows; None without penalties.

        Raises:
            RequestError: logits are not finite, an id in the parameters is outside the vocabulary, or every token is
                banned.
        """
        tokens = self.pick(logits, self.adjusted(logits, history), positions, samples)
        if history:
            history.add(tokens, self.params.penalty_decay, self.uncounted)
        return tokens

    def pick(
        self, logits: Tensor, adjusted: Tensor, positions: Sequence[int] | Tensor, samples: Sequence[int]
    ) -> list[int]:
        """As `sample`, with logits that the caller has adjusted: (B, V) float64, -inf for banned tokens."""
        at = torch.as_tensor(positions, dtype=torch.int64, device=logits.device)
        ids = self.draw.ids(adjusted, at, *self.counters(samples, logits.device))
        tokens = where_finite(logits, ids).tolist()
        if min(tokens) < 0:
            raise RequestError("the model's logits are not finite (NaN or Inf); is the checkpoint damaged?")
        return tokens

    def counters(self, samples: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """The seeds and the sample indices of B rows, (B,) int64 each, as `Draw` takes them."""
        key = (tuple(samples), device)
        if key not in self._counters:  # cached, because copying to a GPU waits for its work
            seeds = torch.full((len(samples),), as_int64(self.seed), dtype=torch.int64, device=device)
            self._counters = {key: (seeds, torch.tensor([as_int64(sample) for sample in samples], device=device))}
        return self._counters[key]

    def probabilities(self, logits: Tensor, history: History | None = None) -> Tensor:
        """The distribution that `sample` uses, (B, V) float64, not normalised; 0 for tokens that are not kept."""
        return self.draw.probabilities(self.adjusted(logits, history))

    def adjusted(self, logits: Tensor, history: History | None = None) -> Tensor:
        """The logits after biases, bans and penalties, (B, V) float64.

        Raises:
            RequestError: an id in the parameters is outside the vocabulary, or every token is banned.
        """
        params = self.params
        logits = logits.double()
        if params.logit_bias or params.banned_tokens:
            logits = logits + self.offset(logits.shape[-1], logits.device)
        if history:
            logits = logits - (
                params.presence_penalty * history.seen.double() + params.frequency_penalty * history.counts
            )
        return logits

    def logprobs(self, logits: Tensor, tokens: Sequence[int]) -> list[Logprob]:
        """The log-probabilities that `SamplingParams.logprobs` asks for, of each row's token, from logits (B, V)."""
        logits = torch.log_softmax(logits.double(), dim=-1)
        top, ids = logits.topk(min(self.params.logprobs or 0, logits.shape[-1]), dim=-1)
        return [
            Logprob(token, row[token].item(), zip(row_ids.tolist(), row_top.tolist(), strict=True))
            for token, row, row_ids, row_top in zip(tokens, logits, ids, top, strict=True)
        ]

    def offset(self, n_vocab: int, device: torch.device) -> Tensor:
        """(V,) float64: the biases, and -inf for banned tokens."""
        if (n_vocab, device) in self._offsets:
            return self._offsets[n_vocab, device]
        bias, banned = self.params.logit_bias, self.params.banned_tokens
        for name, tokens in (("logit_bias", bias), ("banned_tokens", banned)):
            for token in tokens:
                if token >= n_vocab:
                    raise RequestError(f"{name}: got token {token}, expected ids below {n_vocab}, the vocabulary")
        if len(set(banned)) == n_vocab:
            raise RequestError("banned_tokens: every token of the vocabulary is banned")
        offset = torch.zeros(n_vocab, dtype=torch.float64)
        for token, value in bias.items():
            offset[token] = value
        offset[list(banned)] = -torch.inf
        return self._offsets.setdefault((n_vocab, device), offset.to(device))
