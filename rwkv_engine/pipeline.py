"""RWKV: text in, text out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Unpack

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import ModelConfig, State, Strategy
from rwkv_engine.embedding import embed, ids_of
from rwkv_engine.errors import CheckpointError, RequestError, TokenizerError
from rwkv_engine.generation import Sampler, SamplingParams, TextStream, TokenStream
from rwkv_engine.generation.params import SamplingOptions
from rwkv_engine.hub.download import download, parse_id
from rwkv_engine.progress import Progress
from rwkv_engine.runtime import Engine, load_model
from rwkv_engine.text import Tokenizer, check_fits, end_as_trained, find_tokenizer, load_tokenizer
from rwkv_engine.text.find import KINDS

EMBEDDED = {"tales": Path(__file__).parent / "assets" / "tales"}


class RWKV:
    """A model and its tokenizer.

    Attributes:
        config: the model's numbers.
        engine: runs token ids, see `Engine.forward`.
        strategy: where and in what precision the model runs.
    """

    def __init__(self, engine: Engine, strategy: Strategy, tokenizer: Tokenizer | TokenizerError, source: Path):
        """`tokenizer`: or the reason why there is none, raised by the first call that needs one."""
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
                directory; or a hub id, `owner/name` or `owner/name/FILE.pth`. A packed file must keep its size and its
                content while the model is used; replacing or deleting it is safe.
            strategy: where it runs, in what precision.
            tokenizer: path of a tokenizer file; by default one that fits is looked for beside the model, then in the
                hub cache.
            progress: called while loading with the parameters placed so far and in all.
            revision: of a hub id: branch, tag or commit.
            token: for a private or gated repository; by default that of the environment or of `hf auth login`.
            offline: take a hub id from the hub cache and ask no server.

        Raises:
            CheckpointError: no RWKV-4 model can be read there, or none downloaded.
            StrategyError: the strategy cannot be parsed or run.
            TokenizerError: the tokenizer cannot be read or does not fit the model.
        """
        parsed = Strategy.parse(strategy)
        parsed.check_runnable()
        path = locate(model, revision, token, offline)
        checkpoint = Checkpoint.open(path)
        parsed = parsed.resolve(checkpoint.config)
        found = _tokenizer_for(path, checkpoint.config.n_vocab, tokenizer)
        return cls(Engine(load_model(checkpoint, parsed, progress)), parsed, found, path)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: none was given, and what was found, if anything, does not fit.
        """
        if isinstance(self._tokenizer, TokenizerError):
            raise self._tokenizer
        return self._tokenizer

    @property
    def fingerprint(self) -> str:
        """Identifies the model; its states carry it."""
        return self.engine.model.fingerprint

    def forward(
        self, tokens: Sequence[int] | Tensor, state: State | None = None, full_output: bool = False
    ) -> tuple[Tensor, State]:
        """Reads tokens, continuing from `state`, which is not modified.

        Args:
            tokens: T ids of one text, or (B, T) of several.
            state: what a call before returned; None begins a new text.
            full_output: logits for every token instead of the last one.

        Returns:
            Logits float32 (V,), or (T, V) with `full_output`, with a B in front where tokens had one; the new state.

        Raises:
            RequestError: no tokens, an id outside the vocabulary, or a state of another model.
        """
        ids = _as_ids(tokens)
        logits, state = self.engine.forward(ids if ids.ndim == 2 else ids.unsqueeze(0), state, full_output)
        return (logits if ids.ndim == 2 else logits.squeeze(0)), state

    def generate(
        self, prompt: str, max_new_tokens: int = 128, state: State | None = None, **options: Unpack[SamplingOptions]
    ) -> str:
        """Continues a text; returns the continuation without the prompt. Arguments as for `stream`."""
        return "".join(self.stream(prompt, max_new_tokens, state, **options))

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        state: State | None = None,
        sample: int = 0,
        **options: Unpack[SamplingOptions],
    ) -> TextStream:
        """Continues a text, yielding pieces as they come, never half a character and nothing of a stop string.

        The stream tells at any time the `text` so far, its `tokens` and the `state` after exactly that text, which may
        be given to the next call.

        Args:
            prompt: the beginning, or what comes after `state`; an empty one begins a text of the model's own.
            max_new_tokens: at most so many tokens.
            state: what came before the prompt; None for nothing.
            sample: which of several samples of one prompt this is; each is another text under one seed.
            **options: those of `SamplingParams`; by default the tokenizer's end of text stops.

        Raises:
            RequestError: a value out of range.
            TokenizerError: the model has no tokenizer.
        """
        end_of_text = self.tokenizer.end_of_text
        if "stop_tokens" not in options and end_of_text is not None:
            options["stop_tokens"] = (end_of_text,)
        params = SamplingParams(**options)
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
        """Texts as vectors, which are near where texts are alike; see `embedding`.

        Args:
            texts: one, or N of any lengths, in any order; each is read alone, whatever is read beside it.
            pooling: "mean" of the tokens' hidden states, the best one measured; the "last" token's; or what the "state"
                remembers.
            normalize: make every vector one of length 1, so that products of two are cosines.
            batch_size: texts read at once at most.
            progress: called with the tokens read so far and in all.

        Returns:
            (D,) of one text, (N, D) of several; float32, on the CPU. D is `embedding.dimension`.

        Raises:
            RequestError: what is no text, an empty one, a value out of range, or hidden states that are not finite.
            TokenizerError: the model has no tokenizer.
        """
        if isinstance(texts, str):
            return self.embed([texts], pooling, normalize, batch_size, progress)[0]
        if not isinstance(texts, Iterable):
            raise RequestError(f"texts: expected a text or several, got {type(texts).__name__}")
        return embed(self.engine, ids_of(self.tokenizer, texts), pooling, normalize, batch_size, progress)

    @functools.cached_property
    def _blank_or_digit(self) -> frozenset[int]:
        """Ids whose text is found in ` \t0123456789` (so is none at all): the rwkv package does not count them."""
        ids = range(self.tokenizer.n_vocab)
        return frozenset(i for i in ids if self.tokenizer.token_bytes(i) in b" \t0123456789")

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a prompt; the end-of-text token stands for an empty one, see also `end_as_trained`.

        Raises:
            RequestError: no text, or an empty one for a tokenizer without such a token.
        """
        try:
            prompt.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise RequestError(f"prompt: expected text, got {prompt!r}: {error}") from error
        ids = self.tokenizer.encode(prompt)
        if ids:
            return end_as_trained(self.tokenizer, ids)
        if self.tokenizer.end_of_text is None:
            raise RequestError("the prompt is empty, and this tokenizer has no end-of-text token to begin from")
        return [self.tokenizer.end_of_text]


def locate(
    model: str | Path,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    weights: bool = True,
) -> Path:
    """The path of an embedded model by name, else an existing path, else that of a hub id once it is downloaded.

    Args:
        model, revision, token, offline: as for `RWKV.from_pretrained`.
        weights: without them, of a hub id only what lies beside them comes.

    Raises:
        CheckpointError: none of the three, or the download failed; or a revision of what comes from no hub.
    """
    path = EMBEDDED.get(str(model), Path(model))
    try:
        path = path.expanduser()
        here = path.exists()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{model}: no such file or directory: {error}") from error
    if here and revision:
        raise CheckpointError(f"{model}: is on this machine; revision={revision!r} can only be given with a hub id")
    if here:
        return path
    if isinstance(model, str) and parse_id(model):
        return download(model, revision, token, offline, weights)
    raise CheckpointError(
        f"{model}: no such file or directory, not an embedded model ({', '.join(EMBEDDED)}), and not a hub id"
        " (owner/name or owner/name/FILE.pth)"
    )


def _tokenizer_for(path: Path, n_vocab: int, given: str | Path | None) -> Tokenizer | TokenizerError:
    """The tokenizer given, which must fit; else one that is found, or why there is none: `forward` works without."""
    if given:
        tokenizer = load_tokenizer(given)
        check_fits(tokenizer, n_vocab)
        return tokenizer
    advice = "give one: RWKV.from_pretrained(..., tokenizer='FILE'), or --tokenizer FILE on the command line"
    try:
        found = find_tokenizer(path, n_vocab)
        if found is not None:
            return found
        looked = "no tokenizer beside the model or in the hub cache"
        return TokenizerError(f"{path}: {looked} fits its vocabulary of {n_vocab} ({KINDS}); {advice}")
    except TokenizerError as error:
        return TokenizerError(f"{error}; {advice}")


def _as_ids(tokens: Sequence[int] | Tensor) -> Tensor:
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"tokens: expected a list of integer ids, got {type(tokens).__name__}: {error}") from error
    if ids.numel() == 0 or ids.ndim not in (1, 2):
        raise RequestError(f"tokens: expected at least one id, as (T,) or (B, T); got shape {tuple(ids.shape)}")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise RequestError(f"tokens: expected integer ids, got {ids.dtype}")
    return ids.long()
