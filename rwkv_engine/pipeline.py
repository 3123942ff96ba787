"""`RWKV`, the class that most programs need: a model with its tokenizer, text in and text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.checks import require, shown
from rwkv_engine.core import ModelConfig, State, Strategy
from rwkv_engine.embedding import embed, ids_of
from rwkv_engine.errors import RequestError, TokenizerError
from rwkv_engine.generation.asynchronous import AsyncTextGenerator
from rwkv_engine.locate import EMBEDDED as EMBEDDED
from rwkv_engine.locate import locate as locate
from rwkv_engine.native.workers import end_workers
from rwkv_engine.progress import Progress
from rwkv_engine.runtime import Engine, load_model
from rwkv_engine.runtime.engine import as_ids
from rwkv_engine.text import Tokenizer
from rwkv_engine.text.find import tokenizer_for


class RWKV(AsyncTextGenerator):
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
        engine = Engine(load_model(checkpoint, parsed, progress))
        end_workers()  # another thread may run the model
        return cls(engine, parsed, found, path)

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
        ids = as_ids(tokens)
        require("state", state, (State, type(None)), lambda _: True, "a State that a call returned, or None")
        logits, state = self.engine.forward(ids if ids.ndim == 2 else ids.unsqueeze(0), state, full_output)
        return (logits if ids.ndim == 2 else logits.squeeze(0)), state

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
