"""Text as it is generated, with the state after exactly that text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rwkv_engine.core.state import State
from rwkv_engine.generation.generate import TokenStream
from rwkv_engine.generation.sampling import Logprob
from rwkv_engine.text import StreamDecoder, Tokenizer


@dataclass(frozen=True)
class _Snapshot:
    """The state after the first `n_tokens` generated tokens, which have `n_bytes` bytes together."""

    n_tokens: int
    n_bytes: int
    state: State


class TextStream(Iterator[str]):
    """An iterator over pieces of text: complete characters, and never a part of a stop string.

    `text`, `tokens` and `state` always agree with the pieces that have been yielded so far, also if the caller stops
    iterating.

    Attributes:
        n_prompt: the number of tokens of the prompt.
        seed: the seed in use, given or chosen at random.
        sample: the number of this sample, as given to `RWKV.stream`.
        finish_reason: "stop" (a stop string or stop token), "length" (`max_new_tokens`), or None before the end.
    """

    def __init__(self, source: TokenStream, tokenizer: Tokenizer, n_prompt: int):
        self.n_prompt = n_prompt
        self.seed = source.sampler.seed
        self.sample = source.sample
        self.finish_reason: str | None = None
        self._source = source
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(source.sampler.params.stop)
        self._pieces: list[str] = []
        self._drawn: list[int] = []
        self._logprobs: list[Logprob] = []
        self._snapshots: list[_Snapshot] = []  # the last one at or before the end of the text, and all after it

    def __next__(self) -> str:
        piece = ""
        while not piece:
            if self.finish_reason:
                raise StopIteration
            piece = self._advance()
        self._pieces.append(piece)
        return piece

    def _advance(self) -> str:
        token = next(self._source, None)
        if token is None:
            self.finish_reason = "stop" if self._source.stopped else "length"
            return self._decoder.finish()
        assert self._source.state is not None
        before = _Snapshot(len(self._drawn), len(self._decoder.data), self._source.state)
        self._drawn.append(token)
        if self._source.logprobs:
            self._logprobs.append(self._source.logprobs)
        piece = self._decoder.push(self._tokenizer.token_bytes(token))
        self._snapshots = [*self._needed(self._snapshots), before]
        if self._decoder.stopped:
            self.finish_reason = "stop"
        return piece

    def _needed(self, snapshots: list[_Snapshot]) -> list[_Snapshot]:
        """Drops the snapshots that are followed by another one at or before the end of the text."""
        passed = sum(s.n_bytes <= self._decoder.released for s in snapshots)
        return snapshots[max(0, passed - 1) :]

    @property
    def text(self) -> str:
        """The pieces yielded so far, joined."""
        return "".join(self._pieces)

    @property
    def logprobs(self) -> list[Logprob]:
        """One entry for each generated token that is wholly within `text`; empty unless `logprobs` was requested."""
        return self._logprobs[: len(self._drawn) if self._is_whole() else self._last_snapshot().n_tokens]

    @property
    def tokens(self) -> list[int]:
        """The ids of `text`. If it ends within a generated token, the remaining part of that token is encoded again."""
        if self._is_whole():
            return list(self._drawn)
        return [*self._drawn[: self._last_snapshot().n_tokens], *self._rest()]

    @property
    def state(self) -> State:
        """The state after the prompt and `tokens`."""
        if self._is_whole():
            return self._source.read_all()
        state = self._last_snapshot().state
        if rest := self._rest():
            _, state = self._source.engine.forward(torch.tensor([rest]), state)
        return state

    def _is_whole(self) -> bool:
        """Whether the text ends where the last token does."""
        return self._decoder.released == len(self._decoder.data)

    def _last_snapshot(self) -> _Snapshot:
        """The last snapshot at or before the end of the text. There is one before the first token."""
        return [s for s in self._snapshots if s.n_bytes <= self._decoder.released][-1]

    def _rest(self) -> list[int]:
        """Ids of the bytes between the last snapshot and the end of the text."""
        kept = self._decoder.data[self._last_snapshot().n_bytes : self._decoder.released]
        return self._tokenizer.encode_bytes(bytes(kept)) if kept else []
