"""Continues texts with a model and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import overload

from typing_extensions import Unpack

from rwkv_engine.caching.state_cache import StateCache
from rwkv_engine.core.state import State
from rwkv_engine.generation.generate import TokenStream
from rwkv_engine.generation.many import Prompt, advancing, encode_prompt, requests_of, sampler_of
from rwkv_engine.generation.params import TextOptions
from rwkv_engine.generation.scheduler import scheduler_of
from rwkv_engine.generation.text_request import TextRequest
from rwkv_engine.generation.text_stream import TextStream
from rwkv_engine.progress import Progress
from rwkv_engine.runtime.engine import Engine
from rwkv_engine.text import Tokenizer


class TextGenerator:
    """What continues texts: the methods of `RWKV` that do.

    Attributes:
        engine: runs the model on token ids.
    """

    engine: Engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises TokenizerError if there is none."""
        raise NotImplementedError

    @property
    def state_cache(self) -> StateCache | None:
        """Keeps the states after prompts, and finds them again for prompts that begin in the same way; None for none.

        It does not change texts, and is not asked for prompts that continue a `state`. Assign a `StateCache` to turn it
        on, and None to turn it off.
        """
        return scheduler_of(self.engine).cache

    @state_cache.setter
    def state_cache(self, cache: StateCache | None) -> None:
        scheduler_of(self.engine).cache = cache

    @overload
    def generate(  # type: ignore[overload-overlap]  # a string is an iterable of strings, but one text
        self,
        prompt: str,
        max_new_tokens: int = ...,
        state: State | None = ...,
        **options: Unpack[TextOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Iterable[Prompt],
        max_new_tokens: int = ...,
        state: State | None = ...,
        progress: Progress | None = ...,
        **options: Unpack[TextOptions],
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | Iterable[Prompt],
        max_new_tokens: int = 128,
        state: State | None = None,
        progress: Progress | None = None,
        **options: Unpack[TextOptions],
    ) -> str | list[str]:
        """Continues a text and returns the continuation without the prompt; or those of several texts, in order.

        Arguments and errors are those of `stream` for one prompt, and of `generate_many` for several. `progress` is
        called with the number of texts that have ended and the number of prompts.
        """
        if isinstance(prompt, (str, bytes)) or not isinstance(prompt, Iterable):
            return "".join(self.stream(prompt, max_new_tokens, state, **options))  # which refuses what is not text
        requests = list(requests_of(self.tokenizer, prompt, max_new_tokens, state, options))
        for done, _ in enumerate(advancing(scheduler_of(self.engine), requests), start=1):
            if progress:
                progress(done, len(requests))
        return [request.text for request in requests]

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        max_new_tokens: int = 128,
        state: State | None = None,
        **options: Unpack[TextOptions],
    ) -> Iterator[TextRequest]:
        """Continues many texts together, and yields each result when it ends, whose `index` is that of its prompt.

        Each text is the one that `generate` alone would return for its prompt and options; without compiled CPU
        kernels it can differ where two tokens are almost equally likely.

        Args:
            prompts: texts, or dictionaries with a "prompt", and with arguments of `stream` for this text. They are read
                when there is room for them.
            max_new_tokens, state, **options: as for `stream`, for all texts.

        Raises:
            RequestError: an option is unknown or a value is out of range; the message names the prompt.
            TokenizerError: the model has no tokenizer.
        """
        requests = requests_of(self.tokenizer, prompts, max_new_tokens, state, options)
        return advancing(scheduler_of(self.engine), requests)

    def stream_many(
        self,
        prompts: Iterable[Prompt],
        max_new_tokens: int = 128,
        state: State | None = None,
        **options: Unpack[TextOptions],
    ) -> Iterator[tuple[int, str]]:
        """As `generate_many`, but yields pieces as they are generated, each after the index of its prompt."""
        requests = requests_of(self.tokenizer, prompts, max_new_tokens, state, options)
        for request in advancing(scheduler_of(self.engine), requests, pieces=True):
            while request.pieces:
                yield request.index, request.pieces.popleft()

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        state: State | None = None,
        sample: int = 0,
        **options: Unpack[TextOptions],
    ) -> TextStream:
        """Continues a text, yielding pieces as they are generated.

        No piece ends inside a character or holds part of a stop string. At any time the stream has the `text` so far,
        its `tokens`, and the `state` after exactly that text, which the next call may continue from. Streams that
        several threads read share each pass over the weights.

        Args:
            prompt: the beginning of the text, or what follows `state`; an empty prompt begins a new text.
            max_new_tokens: the largest number of tokens to generate.
            state: after the text before the prompt; None if there is none.
            sample: the number of this text among the samples of one prompt; under one seed each is another text.
            **options: the fields of `SamplingParams`, and `owner`, whose text it is: what `state_cache` keeps serves
                prompts of the same owner only. By default the tokenizer's end of text is a stop token. A stop string
                that is a special token acts as a stop token.

        Raises:
            RequestError: an option is unknown or a value is out of range.
            TokenizerError: the model has no tokenizer.
        """
        sampler = sampler_of(self.tokenizer, options)
        ids, owner = self.encode_prompt(prompt), options.get("owner", "")
        return TextStream(TokenStream(self.engine, ids, sampler, max_new_tokens, state, sample, owner), self.tokenizer)

    def encode_prompt(self, prompt: str) -> list[int]:
        """The token ids of a prompt; an empty prompt is the end-of-text token. See also `end_as_trained`.

        Raises:
            RequestError: the prompt is not text, or is empty and the tokenizer has no end-of-text token.
        """
        return encode_prompt(self.tokenizer, prompt)
