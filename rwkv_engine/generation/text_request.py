"""One text of many, which a scheduler generates without waiting for its reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rwkv_engine.core.state import State
from rwkv_engine.generation.generated_text import GeneratedText
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.sampling import Sampler
from rwkv_engine.text import Tokenizer


class TextRequest(Request):
    """A request that decodes its tokens, and ends at a stop string.

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
    ):
        """`tokenizer` decodes the tokens; further arguments and errors are those of `Request`."""
        super().__init__(prompt, sampler, max_new_tokens, state, sample, owner)
        self.index = index
        self.pieces: deque[str] = deque()
        self.generated = GeneratedText(tokenizer, sampler.params.stop)

    def accept(self, token: int) -> bool:
        """See `Request.accept`."""
        self._keep(self.generated.push(token, self.logprobs[-1] if self.logprobs else None))
        return not self.generated.stopped

    def end(self) -> None:
        """See `Request.end`."""
        self._keep(self.generated.finish())

    def _keep(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)

    @property
    def text(self) -> str:
        """The text so far."""
        return self.generated.text
