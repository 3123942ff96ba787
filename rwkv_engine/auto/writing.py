"""R texts that `generate` writes: what happens to their logits, and what ends them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rwkv_engine.auto.options import Options
from rwkv_engine.auto.rwkv_tokenizer import RwkvTokenizer
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import Sampler
from rwkv_engine.runtime import Engine

# (ids (R, T), scores (R, V)) -> scores (R, V), such as a LogitsProcessor of transformers.
Processor = Callable[[Tensor, Tensor], Tensor]
# (ids (R, T), scores) -> which rows end, (R,), or one answer for all rows, such as a StoppingCriteria of transformers.
Criterion = Callable[[Tensor, Any], Any]
ALL_BANNED = "generate: every token is banned, by suppress_tokens, min_new_tokens or a logits_processor"


class Streamer(Protocol):
    """`TextStreamer`, or a streamer of transformers."""

    def put(self, value: Tensor) -> None:
        """Takes the prompts (R, T), then one token of each text (R,) per call."""

    def end(self) -> None:
        """Is called when all texts have ended."""


class Scores:
    """Turns the logits of R texts into scores: penalised, banned, and passed through the caller's processors."""

    def __init__(
        self,
        asked: Options,
        texts: Sequence[Tensor],
        least: int,
        processors: Sequence[Processor],
        n_vocab: int,
        device: torch.device,
    ):
        """Checks what is banned.

        Args:
            asked: the repetition penalty, the banned tokens, and the tokens that end a text.
            texts: the prompt of each row without padding, (T_i,).
            least: how many tokens a text gets at least before a token may end it.
            processors: applied last, to the scores of all rows.
            n_vocab: V, the number of logits of a row.
            device: that of the logits.

        Raises:
            RequestError: every token is banned.
        """
        self._penalty = asked.penalty
        self._least = least
        self.processors = processors
        self._always = torch.tensor(asked.suppressed, dtype=torch.int64, device=device)
        self._early = torch.tensor(asked.ends if least else [], dtype=torch.int64, device=device)
        if len({*self._always.tolist(), *self._early.tolist()}) >= n_vocab:
            raise RequestError(ALL_BANNED)
        shape = len(texts), n_vocab
        self._seen = torch.zeros(shape, dtype=torch.bool, device=device) if self._penalty != 1.0 else None
        for row, text in enumerate(texts):
            self.add([row], text)

    @property
    def change(self) -> bool:
        """Whether scores differ from logits."""
        return bool(self._seen is not None or len(self._always) or len(self._early) or self.processors)

    def add(self, rows: list[int], tokens: Tensor) -> None:
        """Records tokens of rows, one for each row or all of them for a single row."""
        if self._seen is not None:
            at = self._seen.device
            self._seen[torch.tensor(rows, dtype=torch.int64, device=at), tokens.to(at)] = True

    def __call__(self, logits: Tensor, rows: list[int], n: int, sequences: Tensor | None = None) -> Tensor:
        """The scores of some rows, float64 (N, V); -inf where a token is banned.

        Args:
            logits: (N, V) float32.
            rows: the indices of these N texts.
            n: how many tokens have been generated so far.
            sequences: all ids so far, (R, T), for the processors; None without any.

        Raises:
            RequestError: processors banned every token of a row.
        """
        scores = logits
        if self._seen is not None:
            penalised = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
            here = torch.tensor(rows, dtype=torch.int64, device=scores.device)
            scores = torch.where(self._seen[here], penalised, scores)
        if n < self._least and len(self._early):
            scores = scores.index_fill(1, self._early, -torch.inf)
        if len(self._always):
            scores = scores.index_fill(1, self._always, -torch.inf)
        for process in self.processors:
            assert sequences is not None
            scores = process(sequences.to(scores.device), scores)
        if self.processors and bool((scores == -torch.inf).all(dim=-1).any()):
            raise RequestError(ALL_BANNED)
        return scores.double()


class Stopping:
    """Decides which of R texts end: at a token, at a string, or because the caller's criteria say so."""

    def __init__(self, asked: Options, texts: Sequence[Tensor], tokenizer: Any, criteria: Sequence[Criterion]):
        """Args:
            asked: the tokens and strings that end a text.
            texts: the prompt of each row without padding, (T_i,).
            tokenizer: a `RwkvTokenizer`; needed for strings only.
            criteria: called with all rows.

        Raises:
            RequestError: there are stop strings but no `RwkvTokenizer`.
        """
        self._ends = frozenset(asked.ends)
        self.criteria = criteria
        self._strings = [string.encode() for string in asked.strings]
        if self._strings and not isinstance(tokenizer, RwkvTokenizer):
            raise RequestError(
                f"stop_strings: got tokenizer={type(tokenizer).__name__}, expected the tokenizer of"
                " AutoTokenizer.from_pretrained; pass tokenizer=tokenizer too"
            )
        self._token_bytes: Callable[[int], bytes] = tokenizer.token_bytes if self._strings else lambda token: b""
        # A string may begin in the prompt, as in transformers; it ends in a generated token.
        self._data = [bytearray().join(map(self._token_bytes, text.tolist())) for text in texts]

    @property
    def is_possible(self) -> bool:
        """Whether a text may end before it has all tokens that were asked for."""
        return bool(self._ends or self._strings or self.criteria)

    def ended(self, new: Mapping[int, int], sequences: Tensor) -> set[int]:
        """The rows that end with the token they were just given.

        Args:
            new: one token for each row that has not ended yet.
            sequences: all ids so far, (R, T), for the criteria.
        """
        ended = {row for row, token in new.items() if self.ends_with(row, token)}
        for criterion in self.criteria:
            answer = torch.as_tensor(criterion(sequences, None)).bool().cpu()
            ended |= {row for row in new if (answer[row] if answer.ndim else answer)}
        return ended

    def ends_with(self, row: int, token: int) -> bool:
        """Adds a token to a row, and returns whether it or a string ends it."""
        if self._strings:
            data = self._data[row]
            before = len(data)
            data += self._token_bytes(token)
            if any(data.find(string, max(0, before - len(string) + 1)) >= 0 for string in self._strings):
                return True
        return token in self._ends


@dataclass
class Writing:
    """R texts to generate; subclasses do it.

    Attributes:
        engine, sampler, scores, stopping: run the model, sample tokens, adjust logits, and end texts.
        texts: B prompts without padding, (T_i,).
        before: the state of B sequences before these.
        repeated: for each of the R texts, the index of its prompt.
        sequences: ids (R, T) on the CPU: prompts of `width` tokens, then padding that is overwritten.
        width: tokens of each prompt, padding included.
    """

    engine: Engine
    sampler: Sampler
    scores: Scores
    stopping: Stopping
    texts: Sequence[Tensor]
    before: State
    repeated: Sequence[int]
    sequences: Tensor
    width: int

    def run(self, streamer: Streamer | None) -> list[int]:
        """Generates until all texts have ended or `sequences` are full.

        Args:
            streamer: is given the prompts, then each step's tokens.

        Returns:
            The number of generated tokens of each text.

        Raises:
            RequestError: an id is outside the vocabulary, every token of a text is banned, or logits are not finite.
        """
        raise NotImplementedError

    def state(self) -> State:
        """The state of the R texts after all of their tokens, once they have ended."""
        raise NotImplementedError
