"""`RWKV`, the class that most programs need: a model with its tokenizer, text in and text out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.checks import require, require_known, require_text, shown
from rwkv_engine.core import ModelConfig, State, Strategy
from rwkv_engine.embedding import embed, ids_of
from rwkv_engine.errors import RequestError, TokenizerError
from rwkv_engine.generation import Sampler, SamplingParams, TextStream, TokenStream
from rwkv_engine.generation.params import SamplingOptions
from rwkv_engine.generation.special_stops import with_special_stops
from rwkv_engine.locate import EMBEDDED as EMBEDDED
from rwkv_engine.locate import locate as locate
from rwkv_engine.progress import Progress
from rwkv_engine.runtime import Engine, load_model
from rwkv_engine.text import Tokenizer, end_as_trained
from rwkv_engine.text.find import tokenizer_for


class RWKV:
    """A model with its tokenizer; `RWKV.from_pretrained` loads one.

    Attributes:
        config: the sizes of the model.
        engine: runs the model on token ids, see `Engine.forward`.
        strategy: where and in what precision the model runs.
        source: the path that the model was loaded from.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> RWKV:
        """Refuses the name of a model: it belongs into `from_pretrained`."""
        given = [*arguments, *named.values()]  # none when a copy is made
        if given and not isinstance(given[0], Engine):
            raise RequestError(
                f"RWKV: got {shown(given[0])}, expected an Engine; to load a model, call"
                f" RWKV.from_pretrained({shown(given[0])})"
            )
        return super().__new__(cls)

    def __init__(self, engine: Engine, strategy: Strategy, tokenizer: Tokenizer | TokenizerError, source: Path):
        """Wraps a loaded model.

        Args:
            engine: with the model.
            strategy: that the model was loaded with.
            tokenizer: or the reason why there is none, raised by the first call that needs one.
            source: the path that the model was loaded from.
        """
        self.engine = engine
        self.config: ModelConfig = engine.model.config
        self.strategy = strategy
        self.source = source
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        strategy: str = "cpu fp32",
        tokenizer: str | Path | None = None,
        progress: Progress | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> RWKV:
        """Loads a model.

        Args:
            model: `tales`, the embedded model; the path of a `.pth`, a `.safetensors` (packed or not) or a Hugging Face
                directory; or a hub id, `owner/name` or `owner/name/FILE.pth`. A packed file must not be changed while
                the model is in use; replacing or deleting it is safe.
            strategy: where the model runs, and in what precision.
            tokenizer: the path of a tokenizer file. By default one that fits is searched in the model's folder, then in
                the hub cache.
            progress: called while loading with the number of parameters loaded so far and their total.
            revision: of a hub id: a branch, tag or commit.
            token: for a private or gated repository; by default that of the environment or of `hf auth login`.
            offline: take a hub id from the hub cache and contact no server.

        Raises:
            CheckpointError: there is no RWKV-4 model that can be read or downloaded.
            StrategyError: the strategy cannot be parsed or run.
            TokenizerError: the tokenizer cannot be read or does not fit the model.
        """
        if not isinstance(tokenizer, (str, PathLike, type(None))):
            raise TokenizerError(f"tokenizer: got {shown(tokenizer)}, expected the path of a tokenizer file")
        parsed = Strategy.parse(strategy)
        parsed.check_runnable()
        path = locate(model, revision, token, offline)
        checkpoint = Checkpoint.open(path)
        parsed = parsed.resolve(checkpoint.config)
        found = tokenizer_for(path, checkpoint.config.n_vocab, tokenizer)
        return cls(Engine(load_model(checkpoint, parsed, progress)), parsed, found, path)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: none was given, and none that fits was found.
        """
        if isinstance(self._tokenizer, TokenizerError):
            raise self._tokenizer
        return self._tokenizer

    @property
    def fingerprint(self) -> str:
        """Identifies the model. A state carries that of the model which computed it."""
        return self.engine.model.fingerprint

    def forward(
        self, tokens: Sequence[int] | Tensor, state: State | None = None, full_output: bool = False
    ) -> tuple[Tensor, State]:
        """Runs the model on tokens, continuing from `state`, which is not modified.

        Args:
            tokens: T ids of one text, or (B, T) of several texts.
            state: as an earlier call returned it; None begins a new text.
            full_output: return logits for every token instead of the last one.

        Returns:
            Logits, float32 (V,), or (T, V) with `full_output`, with a leading B if `tokens` has one; and the new state.

        Raises:
            RequestError: there are no tokens, an id is outside the vocabulary, or the state is not this model's.
        """
        ids = _as_ids(tokens)
        require("state", state, (State, type(None)), lambda _: True, "a State that a call returned, or None")
        logits, state = self.engine.forward(ids if ids.ndim == 2 else ids.unsqueeze(0), state, full_output)
        return (logits if ids.ndim == 2 else logits.squeeze(0)), state

    def generate(
        self, prompt: str, max_new_tokens: int = 128, state: State | None = None, **options: Unpack[SamplingOptions]
    ) -> str:
        """Continues a text and returns the continuation without the prompt. Arguments and errors as for `stream`."""
        return "".join(self.stream(prompt, max_new_tokens, state, **options))

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        state: State | None = None,
        sample: int = 0,
        **options: Unpack[SamplingOptions],
    ) -> TextStream:
        """Continues a text, yielding pieces as they are generated.

        No piece ends inside a character or holds part of a stop string. At any time the stream has the `text` so far,
        its `tokens`, and the `state` after exactly that text, which the next call may continue from.

        Args:
            prompt: the beginning of the text, or what follows `state`; an empty prompt begins a new text.
            max_new_tokens: the largest number of tokens to generate.
            state: after the text before the prompt; None if there is none.
            sample: the number of this text among the samples of one prompt; under one seed each is another text.
            **options: the fields of `SamplingParams`. By default the tokenizer's end of text is a stop token. A stop
                string that is a special token acts as a stop token.

        Raises:
            RequestError: an option is unknown or a value is out of range.
            TokenizerError: the model has no tokenizer.
        """
        require_known(options, ("prompt", "max_new_tokens", "state", "sample", *SamplingOptions.__annotations__))
        end_of_text = self.tokenizer.end_of_text
        if "stop_tokens" not in options and end_of_text is not None:
            options["stop_tokens"] = (end_of_text,)
        params = with_special_stops(SamplingParams(**options), self.tokenizer.special_tokens)
        sampler = Sampler(params, self._blank_or_digit if params.compat == "rwkv" else ())
        ids = self.encode_prompt(prompt)
        tokens = TokenStream(self.engine, ids, sampler, max_new_tokens, state, sample)
        return TextStream(tokens, self.tokenizer, len(ids))

    def embed(
        self,
        texts: str | Iterable[str],
        pooling: str = "mean",
        normalize: bool = False,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Tensor:
        """Vectors of texts; similar texts have vectors that are near each other. See the module `embedding`.

        Args:
            texts: one, or N of any lengths, in any order. A vector depends on its text alone.
            pooling: "mean" of the hidden states of all tokens, the best one measured; the "last" token's; or the
                "state" of the recurrence.
            normalize: scale every vector to length 1, so that dot products are cosines.
            batch_size: the largest number of texts in one forward pass.
            progress: called with the number of tokens processed so far and their total.

        Returns:
            (D,) for one text, (N, D) for several; float32, on the CPU. D is `embedding.dimension`.

        Raises:
            RequestError: an argument that is not text, an empty text, a value out of range, or hidden states that are
                not finite.
            TokenizerError: the model has no tokenizer.
        """
        if isinstance(texts, str):
            return self.embed([texts], pooling, normalize, batch_size, progress)[0]
        if not isinstance(texts, Iterable):
            raise RequestError(f"texts: expected a text or several, got {type(texts).__name__}")
        return embed(self.engine, ids_of(self.tokenizer, texts), pooling, normalize, batch_size, progress)

    @functools.cached_property
    def _blank_or_digit(self) -> frozenset[int]:
        """The ids that the rwkv package's frequency penalty does not count: digits, blanks, tokens without text."""
        ids = range(self.tokenizer.n_vocab)
        return frozenset(i for i in ids if self.tokenizer.token_bytes(i) in b" \t0123456789")

    def encode_prompt(self, prompt: str) -> list[int]:
        """The token ids of a prompt; an empty prompt is the end-of-text token. See also `end_as_trained`.

        Raises:
            RequestError: the prompt is not text, or is empty and the tokenizer has no end-of-text token.
        """
        require_text("prompt", prompt)
        ids = self.tokenizer.encode(prompt)
        if ids:
            return end_as_trained(self.tokenizer, ids)
        if self.tokenizer.end_of_text is None:
            raise RequestError("the prompt is empty, and this tokenizer has no end-of-text token to begin from")
        return [self.tokenizer.end_of_text]


def _as_ids(tokens: Sequence[int] | Tensor) -> Tensor:
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"tokens: expected a list of integer ids, got {type(tokens).__name__}: {error}") from error
    if ids.numel() == 0 or ids.ndim not in (1, 2):
        raise RequestError(f"tokens: expected at least one id, as (T,) or (B, T); got shape {tuple(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise RequestError(f"tokens: expected integer ids, got {ids.dtype}")
    if ids.is_meta or ids.layout != torch.strided:
        raise RequestError(f"tokens: expected a dense tensor of ids, got {ids.layout} on {ids.device}")
    return ids.long()
