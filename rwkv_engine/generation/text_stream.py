"""Generated text, piece by piece, with the state after exactly that text."""

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
    """The state after `n_tokens` generated tokens, whose text has `n_bytes`."""

    n_tokens: int
    n_bytes: int
    state: State


class TextStream(Iterator[str]):
    """Yields pieces of generated text; none ends inside a character or contains a part of a stop string.

    `text`, `tokens` and `state` always describe the pieces yielded so far, whatever ends the stream: a stop string, a
    stop token, the number of tokens, or a caller who stops iterating.

    To return the state after exactly that text, the stream keeps the state before every token that a stop string may
    still truncate, and processes the kept part of the last token again.

    Attributes:
        n_prompt: the number of tokens in the prompt.
        seed: the seed of the random numbers, even if none was given.
        sample: the index of this text among the samples of one prompt.
        finish_reason: "stop" (a stop string or token), "length" (`max_new_tokens`), None before the end.
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
        self._snapshots: list[_Snapshot] = []  # those that a stop string may still need

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
        """All pieces so far."""
        return "".join(self._pieces)

    @property
    def logprobs(self) -> list[Logprob]:
        """The log-probabilities of the tokens that are completely part of the text, if the parameters ask for them."""
        return self._logprobs[: len(self._drawn) if self._is_whole() else self._last_snapshot().n_tokens]

    @property
    def tokens(self) -> list[int]:
        """The token ids of the text. If it ends inside a token, the kept part of that token is encoded again."""
        if self._is_whole():
            return list(self._drawn)
        return [*self._drawn[: self._last_snapshot().n_tokens], *self._rest()]

    @property
    def state(self) -> State:
        """The state after the prompt and the text: the one that a forward pass over both of them returns."""
        if self._is_whole():
            return self._source.read_all()
        state = self._last_snapshot().state
        if rest := self._rest():
            _, state = self._source.engine.forward(torch.tensor([rest]), state)
        return state

    def _is_whole(self) -> bool:
        """Whether the text ends at the end of the last token."""
        return self._decoder.released == len(self._decoder.data)

    def _last_snapshot(self) -> _Snapshot:
        """The last snapshot at or before the end of the text. There always is one: every token has one before it."""
        return [s for s in self._snapshots if s.n_bytes <= self._decoder.released][-1]

    def _rest(self) -> list[int]:
        """The token ids of the bytes between the last snapshot and the end of the text."""
        kept = self._decoder.data[self._last_snapshot().n_bytes : self._decoder.released]
        return self._tokenizer.encode_bytes(bytes(kept)) if kept else []
