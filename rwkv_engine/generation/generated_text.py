"""The text of generated tokens, piece by piece, and which tokens are exactly that text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.text import StreamDecoder, Tokenizer


class Mark(NamedTuple):
    """A place between two tokens: after `n_tokens` generated tokens, whose text has `n_bytes`."""

    n_tokens: int
    n_bytes: int


class GeneratedText:
    """Decodes tokens to text, of which a part may be held back: an incomplete character, or what may begin a stop
    string.

    Attributes:
        stopped: whether a stop string has ended the text.
        marks: the places before the tokens that are held back, as far as the end of the text may still be at or after
            them; the last one at or before that end is the first of them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], held: bytes = b""):
        """`held` was generated before, and is held back until the first token."""
        self.marks: list[Mark] = []
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(stop)
        self._held = held
        self._drawn: list[int] = []
        self._logprobs: list[Logprob] = []
        self._pieces: list[str] = []

    def push(self, token: int, logprob: Logprob | None) -> str:
        """Adds a token, and returns the text that it completes, which may be empty."""
        before = Mark(len(self._drawn), len(self._decoder.data))
        self._drawn.append(token)
        if logprob:
            self._logprobs.append(logprob)
        piece = self._keep(self._decoder.push(self._held + self._tokenizer.token_bytes(token)))
        self._held = b""
        passed = sum(mark.n_bytes <= self._decoder.released for mark in self.marks)
        self.marks = [] if self.is_whole else [*self.marks[max(0, passed - 1) :], before]
        return piece

    def finish(self) -> str:
        """The rest of the text, when no token follows."""
        return self._keep((self._decoder.push(self._held) if self._held else "") + self._decoder.finish())

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._decoder.stopped

    @property
    def is_whole(self) -> bool:
        """Whether the text ends at the end of the last token."""
        return self._decoder.released == len(self._decoder.data)

    @property
    def n_bytes(self) -> int:
        """The number of bytes of the text so far, without what is held back."""
        return self._decoder.released

    @property
    def text(self) -> str:
        """The text so far, without what is held back."""
        return "".join(self._pieces)

    @property
    def tokens(self) -> list[int]:
        """The ids of the text. If it ends inside a token, the kept part of that token is encoded again."""
        return list(self._drawn) if self.is_whole else [*self._drawn[: self.mark.n_tokens], *self.rest()]

    @property
    def logprobs(self) -> list[Logprob]:
        """The log-probabilities of the tokens that are completely part of the text, if they were given."""
        return self._logprobs[: len(self._drawn) if self.is_whole else self.mark.n_tokens]

    @property
    def mark(self) -> Mark:
        """The last mark at or before the end of a text that is not whole."""
        return [mark for mark in self.marks if mark.n_bytes <= self._decoder.released][-1]

    def rest(self) -> list[int]:
        """The ids of the bytes between that mark and the end of the text."""
        kept = self._decoder.data[self.mark.n_bytes : self._decoder.released]
        return self._tokenizer.encode_bytes(bytes(kept)) if kept else []

    def _keep(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece
