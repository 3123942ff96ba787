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
    """A model with its tokenizer.

    Attributes:
        config: the sizes of the model.
        engine: runs the model on token ids, see `Engine.forward`.
        strategy: the devices and precisions on which the model runs.
        source: the path that the model was loaded from.
    """

    def __init__(self, engine: Engine, strategy: Strategy, tokenizer: Tokenizer | TokenizerError, source: Path):
        """Use `from_pretrained`. An error given as `tokenizer` is raised by the first call that needs a tokenizer."""
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
            model: `tales` (the embedded model), the path of a `.pth` file, a `.safetensors` file (packed or not) or a
                Hugging Face directory, or a hub id (`owner/name` or `owner/name/FILE.pth`). A packed file must not be
                written to while the model is in use; replacing or deleting it is safe.
            strategy: the devices and precisions of the layers, such as "cpu bf16"; see the page on strategies.
            tokenizer: path of a tokenizer file. By default, one that fits is looked for beside the model
                and then in the hub cache.
            progress: called during loading with the number of parameters placed so far, and of all parameters.
            revision: branch, tag or commit, for a hub id.
            token: access token for a private or gated repository. By default the one of the environment or of
                `hf auth login`.
            offline: take the files of a hub id from the hub cache only.

        Raises:
            CheckpointError: the model cannot be read or downloaded, or is not an RWKV-4 model.
            StrategyError: the strategy cannot be parsed, or cannot run here.
            TokenizerError: the tokenizer cannot be read, or does not fit the model.
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
            TokenizerError: no tokenizer was given, and none that fits was found.
        """
        if isinstance(self._tokenizer, TokenizerError):
            raise self._tokenizer
        return self._tokenizer

    @property
    def fingerprint(self) -> str:
        """Identifies the weights of the model. Its states carry it, so that another model refuses them."""
        return self.engine.model.fingerprint

    def forward(
        self, tokens: Sequence[int] | Tensor, state: State | None = None, full_output: bool = False
    ) -> tuple[Tensor, State]:
        """Runs the model on tokens, continuing from `state`, which is not modified.

        Args:
            tokens: integer ids, (T,) for one text or (B, T) for a batch; T >= 1.
            state: the state returned by an earlier call; None starts a new text.
            full_output: return logits for every token instead of the last one.

        Returns:
            The logits, float32: (V,) for one text and (B, V) for a batch; with `full_output`, (T, V) and (B, T, V).
            And the new state.

        Raises:
            RequestError: there are no tokens, an id is outside the vocabulary, or the state is of another model.
        """
        ids = _as_ids(tokens)
        logits, state = self.engine.forward(ids if ids.ndim == 2 else ids.unsqueeze(0), state, full_output)
        return (logits if ids.ndim == 2 else logits.squeeze(0)), state

    def generate(
        self, prompt: str, max_new_tokens: int = 128, state: State | None = None, **options: Unpack[SamplingOptions]
    ) -> str:
        """Generates a continuation of a prompt and returns it without the prompt. Arguments are those of `stream`."""
        return "".join(self.stream(prompt, max_new_tokens, state, **options))

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        state: State | None = None,
        sample: int = 0,
        **options: Unpack[SamplingOptions],
    ) -> TextStream:
        """Generates a continuation of a prompt piece by piece.

        Pieces consist of complete characters and never contain a part of a stop string. At any time, the stream has the
        `text` so far, its `tokens`, and the `state` after exactly that text, which can be passed to another call.

        Args:
            prompt: the text to continue. If it is empty, the model starts a text of its own.
            max_new_tokens: the maximum number of tokens to generate.
            state: the state after the text before the prompt; None if there is none.
            sample: the number of this sample. With the same seed, each number gives another text.
            **options: the fields of `SamplingParams`. By default, the tokenizer's end-of-text token ends the text.

        Raises:
            RequestError: an argument is out of range.
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
        """Computes embeddings: vectors that are similar for similar texts; see `embedding`.

        Args:
            texts: one text, or N texts of any lengths. The embedding of a text does not depend on the other texts.
            pooling: "mean" (the mean hidden state of all tokens, recommended), "last" (the hidden state of the last
                token) or "state" (computed from the recurrent state).
            normalize: scale every vector to length 1, so that the dot product of two is their cosine similarity.
            batch_size: the maximum number of texts that are processed at once.
            progress: called with the number of tokens processed so far, and of all tokens.

        Returns:
            Float32 on the CPU: (D,) for one text, (N, D) for N texts. D is `embedding.dimension`.

        Raises:
            RequestError: an argument is not a text, is empty or out of range, or hidden states are not finite.
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
        """The token ids that `stream` passes to the model: an empty prompt is replaced by the end-of-text token.

        See also `text.end_as_trained`.

        Raises:
            RequestError: the prompt is not a string, or it is empty and the tokenizer has no end-of-text token.
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
