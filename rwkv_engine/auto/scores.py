"""Logits as tokens are drawn from them: penalised, banned, and as a caller's processors leave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rwkv_engine.auto.options import Options
from rwkv_engine.errors import RequestError

# (ids (R, T), scores (R, V)) -> scores; transformers' LogitsProcessor is one.
Processor = Callable[[Tensor, Tensor], Tensor]


class Scores:
    """What `Options` says of logits, for R texts."""

    def __init__(
        self, asked: Options, texts: Sequence[Tensor], least: int, processors: Sequence[Processor], like: Tensor
    ):
        """Before the first token.

        Args:
            asked: the penalty and the bans.
            texts: what each row has read, (T_i,), no padding among it.
            least: new tokens before an end.
            processors: what the caller does with scores; called with all rows.
            like: logits (R, V), for their size and device.
        """
        self._penalty = asked.penalty
        self._least = least
        self._processors = processors
        self._always = torch.tensor(asked.suppressed, dtype=torch.int64, device=like.device)
        self._early = torch.tensor(asked.ends, dtype=torch.int64, device=like.device)
        self._seen = torch.zeros(like.shape, dtype=torch.bool, device=like.device) if self._penalty != 1.0 else None
        for row, text in enumerate(texts):
            self.add([row], text)

    def add(self, rows: list[int], tokens: Tensor) -> None:
        """Tokens of some rows, one for each or all for one."""
        if self._seen is not None:
            at = self._seen.device
            self._seen[torch.tensor(rows, device=at), tokens.to(at)] = True

    def __call__(self, logits: Tensor, rows: list[int], n: int, sequences: Tensor) -> Tensor:
        """Scores of some rows, float64 (N, V), -inf where a token is banned.

        Args:
            logits: (N, V) float32.
            rows: which they are of.
            n: new tokens so far.
            sequences: all ids so far, (R, T), for processors.

        Raises:
            RequestError: every token is banned.
        """
        scores = logits
        if self._seen is not None:
            penalised = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
            scores = torch.where(self._seen[torch.tensor(rows, device=scores.device)], penalised, scores)
        if n < self._least and len(self._early):
            scores = scores.index_fill(1, self._early, -torch.inf)
        if len(self._always):
            scores = scores.index_fill(1, self._always, -torch.inf)
        for process in self._processors:
            scores = process(sequences.to(scores.device), scores)
        if scores is not logits and bool((scores == -torch.inf).all(dim=-1).any()):
            raise RequestError(
                "generate: every token is banned, by suppress_tokens, min_new_tokens or a logits_processor"
            )
        return scores.double()
