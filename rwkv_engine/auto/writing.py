"""The loop of `generate`: R texts grow by one token each per step, until all have ended."""

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


class Streamer(Protocol):
    """`TextStreamer`, or a streamer of transformers."""

    def put(self, value: Tensor) -> None:
        """Takes the prompts (R, T), then one token of each text (R,) per call."""

    def end(self) -> None:
        """Is called when all texts have ended."""


class Scores:
    """Turns the logits of R texts into scores: penalised, banned, and passed through the caller's processors."""

    def __init__(
        self, asked: Options, texts: Sequence[Tensor], least: int, processors: Sequence[Processor], like: Tensor
    ):
        """Args:
        asked: the repetition penalty, the banned tokens, and the tokens that end a text.
        texts: the prompt of each row without padding, (T_i,).
        least: how many tokens a text gets at least before a token may end it.
        processors: applied last, to the scores of all rows.
        like: logits (R, V), for their shape and device.
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
        """Records tokens of rows, one for each row or all of them for a single row."""
        if self._seen is not None:
            at = self._seen.device
            self._seen[torch.tensor(rows, dtype=torch.int64, device=at), tokens.to(at)] = True

    def __call__(self, logits: Tensor, rows: list[int], n: int, sequences: Tensor) -> Tensor:
        """The scores of some rows, float64 (N, V); -inf where a token is banned.

        Args:
            logits: (N, V) float32.
            rows: the indices of these N texts.
            n: how many tokens have been generated so far.
            sequences: all ids so far, (R, T), for the processors.

        Raises:
            RequestError: every token of a row is banned.
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
        for process in self._processors:
            scores = process(sequences.to(scores.device), scores)
        if scores is not logits and bool((scores == -torch.inf).all(dim=-1).any()):
            raise RequestError(
                "generate: every token is banned, by suppress_tokens, min_new_tokens or a logits_processor"
            )
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
        self._criteria = criteria
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
        return bool(self._ends or self._strings or self._criteria)

    def ended(self, new: Mapping[int, int], sequences: Tensor) -> set[int]:
        """The rows that end with the token they were just given.

        Args:
            new: one token for each row that has not ended yet.
            sequences: all ids so far, (R, T), for the criteria.
        """
        ended = {row for row, token in new.items() if self._ends_with(row, token)}
        for criterion in self._criteria:
            answer = torch.as_tensor(criterion(sequences, None)).bool().cpu()
            ended |= {row for row in new if (answer[row] if answer.ndim else answer)}
        return ended

    def _ends_with(self, row: int, token: int) -> bool:
        if self._strings:
            data = self._data[row]
            before = len(data)
            data += self._token_bytes(token)
            if any(data.find(string, max(0, before - len(string) + 1)) >= 0 for string in self._strings):
                return True
        return token in self._ends


@dataclass
class Writing:
    """R texts that are being generated.

    Attributes:
        engine, sampler, scores, stopping: run the model, sample tokens, adjust logits, and end texts.
        sequences: ids (R, T) on the CPU: prompts of `width` tokens, then padding that is overwritten.
        width: tokens of each prompt, padding included.
        all_stay: keep texts that have ended in the batch, for processors and criteria that look at all rows.
    """

    engine: Engine
    sampler: Sampler
    scores: Scores
    stopping: Stopping
    sequences: Tensor
    width: int
    all_stay: bool

    def run(self, logits: Tensor, state: State, streamer: Streamer | None = None) -> list[int]:
        """Generates until all texts have ended or `sequences` are full.

        Args:
            logits: (R, V) float32, after the prompts.
            state: of R sequences, after the prompts.
            streamer: is given the prompts, then each step's tokens.

        Returns:
            The number of generated tokens of each text.
        """
        rows = list(range(len(self.sequences)))  # those in the batch
        running, lengths = set(rows), [0] * len(rows)
        if streamer is not None:
            streamer.put(self.sequences[:, : self.width])
        for end in range(self.width, self.sequences.shape[1]):
            scores = self.scores(logits, rows, end - self.width, self.sequences[:, :end])
            tokens = self.sampler.pick(logits, scores, state.position, rows)
            new = {row: token for row, token in zip(rows, tokens, strict=True) if row in running}
            written = torch.tensor(list(new.values()), dtype=torch.int64)
            self.sequences[list(new), end] = written
            self.scores.add(list(new), written)
            for row in new:
                lengths[row] += 1
            if streamer is not None:
                streamer.put(self.sequences[:, end])
            running -= self.stopping.ended(new, self.sequences[:, : end + 1])
            if not running or end + 1 == self.sequences.shape[1]:
                break
            stay = [i for i, row in enumerate(rows) if self.all_stay or row in running]
            if len(stay) < len(rows):
                rows, tokens = [rows[i] for i in stay], [tokens[i] for i in stay]
                state = state.rows(torch.tensor(stay, dtype=torch.int64, device=state.position.device))
            logits, state = self.engine.forward(torch.tensor(tokens, dtype=torch.int64).unsqueeze(1), state)
        if streamer is not None:
            streamer.end()
        return lengths
