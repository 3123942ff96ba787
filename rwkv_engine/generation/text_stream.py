"""Generated text, piece by piece, with the state after exactly that text."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rwkv_engine.core.state import State
from rwkv_engine.generation.generate import TokenStream
from rwkv_engine.generation.generated_text import GeneratedText, Mark
from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.text import Tokenizer


class TextStream(Iterator[str]):
    """Yields pieces of generated text; none ends inside a character or contains a part of a stop string.

    `text`, `tokens` and `state` always describe the pieces yielded so far, whatever ends the stream: a stop string, a
    stop token, the number of tokens, or a caller who stops iterating.

    To return the state after exactly that text, the stream keeps the state before every token whose text is held back,
    because a stop string may still truncate it, and processes the kept part of the last token again.

    Attributes:
        n_prompt: the number of tokens in the prompt.
        seed: the seed of the random numbers, even if none was given.
        sample: the index of this text among the samples of one prompt.
        finish_reason: "stop" (a stop string or token), "length" (`max_new_tokens`), None before the end.
        generated: decodes the text.
    """

    def __init__(self, source: TokenStream, tokenizer: Tokenizer):
        request = source.request
        self.n_prompt = len(request.prompt)
        self.seed = request.sampler.seed
        self.sample = request.sample
        self.finish_reason: str | None = None
        self._source = source
        self.generated = GeneratedText(tokenizer, request.sampler.params.stop)
        self._states: dict[Mark, State] = {}

    def __next__(self) -> str:
        piece = ""
        while not piece:
            if self.finish_reason:
                raise StopIteration
            piece = self._advance()
        return piece

    def _advance(self) -> str:
        token = next(self._source, None)
        if token is None:
            self.finish_reason = "stop" if self._source.stopped else "length"
            return self.generated.finish()
        piece = self.generated.push(token, self._source.logprob)
        marks = self.generated.marks
        self._states = {mark: self._states[mark] for mark in marks if mark in self._states}
        if marks:
            self._states[marks[-1]] = self._source.before_last()
        if self.generated.stopped:
            self.finish_reason = "stop"
        return piece

    @property
    def text(self) -> str:
        """All pieces so far."""
        return self.generated.text

    @property
    def logprobs(self) -> list[Logprob]:
        """The log-probabilities of the tokens that are completely part of the text, if the parameters ask for them."""
        return self.generated.logprobs

    @property
    def tokens(self) -> list[int]:
        """The token ids of the text. If it ends inside a token, the kept part of that token is encoded again."""
        return self.generated.tokens

    @property
    def state(self) -> State:
        """The state after the prompt and the text: the one that a forward pass over both of them returns."""
        if self.generated.is_whole:
            return self._source.read_all()
        state = self._states[self.generated.mark]
        if rest := self.generated.rest():
            _, state = self._source.engine.forward(torch.tensor([rest], dtype=torch.int64), state)
        return state
