"""One text of many, which a scheduler generates without waiting for its reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.continuing import text_bytes
from rwkv_engine.generation.generated_text import GeneratedText, Mark
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.sampling import Sampler
from rwkv_engine.text import Tokenizer

# While text is held back, the state before each token is kept. If there are many, only one for so many tokens is kept,
# because a long stop string could take any amount of memory otherwise.
MANY, APART = 8, 64


class TextRequest(Request):
    """A request that decodes its tokens, and ends at a stop string.

    If it `wants_state`, what is held back when the tokens run out, because a character is not complete or a stop string
    may have begun, is left to whoever goes on from its `snapshot`.

    Attributes:
        index: the place of its prompt among all prompts.
        generated: the text so far, and the tokens that are exactly that text; `tokens` may be more.
        pieces: what was added to it and nobody has taken yet; no piece ends inside a character or contains a part of a
            stop string.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampler: Sampler,
        max_new_tokens: int,
        state: State | None = None,
        sample: int = 0,
        owner: str = "",
        begun: Snapshot | None = None,
    ):
        """`tokenizer` decodes the tokens; further arguments and errors are those of `Request`.

        A request that goes on with the same text has the state and the prompt that `state_within` gives for `begun`.
        """
        super().__init__(prompt, sampler, max_new_tokens, state, sample, owner)
        self.index = index
        self.pieces: deque[str] = deque()
        self._tokenizer = tokenizer
        self._begun = begun
        unread = text_bytes(tokenizer, begun.unread) if begun else b""
        self._shown, held = (unread[: begun.n_shown], unread[begun.n_shown :]) if begun else (b"", b"")
        self.generated = GeneratedText(tokenizer, sampler.params.stop, held)
        self._kept: list[tuple[Mark, State]] = []  # states at marks, the first of them at or before the end of the text

    def accept(self, token: int) -> bool:
        """See `Request.accept`."""
        self._keep(self.generated.push(token, self.logprobs[-1] if self.logprobs else None))
        return not self.generated.stopped

    def mark(self, snapshot: Callable[[], State]) -> None:
        """See `Request.mark`."""
        if not self.generated.marks:
            self._kept.clear()
            return
        mark = self.generated.marks[-1]
        if len(self._kept) < MANY or mark.n_tokens >= self._kept[-1][0].n_tokens + APART:
            is_begin = self._begun and mark.n_tokens == 0
            self._kept.append((mark, self._begun.state if self._begun and is_begin else snapshot()))
        while len(self._kept) > 1 and self._kept[1][0].n_bytes <= self.generated.n_bytes:
            self._kept.pop(0)

    def end(self) -> None:
        """See `Request.end`."""
        is_cut = self.unread or not self.max_new_tokens  # a stop token leaves nothing unread
        if not (self.wants_state and is_cut):
            self._keep(self.generated.finish())

    def _keep(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)

    @property
    def goes_on(self) -> bool:
        """Whether it is the rest of a text that was cut, of which its reader has seen the beginning."""
        return self._begun is not None

    @property
    def text(self) -> str:
        """The text so far."""
        return self.generated.text

    @property
    def snapshot(self) -> Snapshot:
        """Where the text has ended. The request must have ended, and must have wanted its state.

        Raises:
            RequestError: there is no state, because the request failed.
        """
        text, begun = self.generated, self._begun
        if begun and not self.tokens:
            return Snapshot(begun.state, begun.unread, len(self._shown) + text.n_bytes)
        if text.is_whole:
            if self.state is None:
                raise RequestError(f"there is no state after this text, because generating it failed: {self.error}")
            return self._snapshot(self.state, self.unread)
        base, state = self._kept[0]
        before, n_before = ((), 0) if base.n_tokens or not begun else (begun.unread, len(self._shown))
        if not text.stopped:
            n_shown = n_before + text.n_bytes - base.n_bytes
            return Snapshot(state, (*before, *self.tokens[base.n_tokens :]), n_shown)
        if before and text.mark.n_tokens == 0:  # the text ends inside of what was held back
            before = tuple(self._tokenizer.encode_bytes(self._shown)) if self._shown else ()
        return self._snapshot(state, (*before, *text.tokens[base.n_tokens :]))

    def _snapshot(self, state: State, unread: Sequence[int]) -> Snapshot:
        return Snapshot(state, tuple(unread), len(text_bytes(self._tokenizer, unread)))
