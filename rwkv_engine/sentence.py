"""`RWKV.embed` as a module for the sentence-transformers package.

    from sentence_transformers import SentenceTransformer
    from rwkv_engine.sentence import RwkvEmbedding

    model = SentenceTransformer(modules=[RwkvEmbedding("tales")])
    model.encode(["Once upon a time there was a king.", "The soup needs salt."])

The package is not needed to import this file: a module only has to have methods with certain names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_engine.embedding import dimension, embed, ids_of
from rwkv_engine.errors import CheckpointError, RequestError
from rwkv_engine.pipeline import EMBEDDED, RWKV
from rwkv_engine.text import Tokenizer

CONFIG = "rwkv_embedding.json"
SAVED = {"model", "strategy", "tokenizer", "revision", "pooling", "normalize", "max_seq_length"}


class RwkvEmbedding(nn.Module):
    """The first and only module that a `SentenceTransformer` needs: it turns texts into vectors.

    The model stays on the devices of its strategy; `to(device)` moves nothing. The module has no trainable parameters.

    Attributes:
        model: the `RWKV` that computes the vectors.
        pooling, normalize: as for `RWKV.embed`.
        max_seq_length: truncate longer texts to this many tokens; None, the default, truncates nothing.
    """

    # The arguments that `encode` may pass on to `forward`: none.
    forward_kwargs: frozenset[str] = frozenset()
    save_in_root = False

    def __init__(
        self,
        model: str | Path | RWKV,
        strategy: str = "cpu fp32",
        tokenizer: str | Path | None = None,
        pooling: str = "mean",
        normalize: bool = False,
        max_seq_length: int | None = None,
        revision: str | None = None,
    ):
        """Loads a model as `RWKV.from_pretrained` does; an `RWKV` that is passed is used as it is.

        Raises:
            RwkvError: as `RWKV.from_pretrained` and `RWKV.embed` do.
        """
        super().__init__()
        if isinstance(model, RWKV):
            if tokenizer or revision or strategy != "cpu fp32":
                raise RequestError(
                    "strategy, tokenizer and revision are those of the RWKV that was passed; leave them out"
                )
            self.model, strategy = model, str(model.strategy)
            model = model.source
            # A tokenizer next to the model will be found again without its path.
            found = Path(self.model.tokenizer.name)
            tokenizer = found if found.is_file() and found.parent not in (model, model.parent) else None
        else:
            self.model = RWKV.from_pretrained(model, strategy, tokenizer, revision=revision)
        self._origin = {
            "model": _lasting(model),
            "strategy": strategy,
            "tokenizer": None if tokenizer is None else _lasting(tokenizer),
            "revision": revision,
        }
        self.pooling = pooling
        self.normalize = normalize
        self.max_seq_length = max_seq_length
        self.get_embedding_dimension()  # refuses an unknown pooling

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self.model.tokenizer

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Token ids of B texts, padded on the right.

        Args:
            inputs: the texts.
            prompt: is put before each text.
            kwargs: ignored; the package may pass more arguments.

        Returns:
            `input_ids` and `attention_mask`, int64 (B, T); the mask is 0 for padding.

        Raises:
            RequestError: an input is not text, or is empty.
        """
        texts = [f"{prompt}{text}" if prompt and isinstance(text, str) else text for text in inputs]
        ids = [row[: self.max_seq_length] for row in ids_of(self.tokenizer, texts)]
        masks = [torch.ones_like(row) for row in ids]
        padded = (nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (ids, masks))
        return dict(zip(("input_ids", "attention_mask"), padded, strict=True))

    def tokenize(self, texts: Sequence[str], **kwargs: Any) -> dict[str, Tensor]:
        """The name of `preprocess` in sentence-transformers before 5.4."""
        return self.preprocess(texts, **kwargs)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Computes the vectors; padding is not read.

        Args:
            features: `input_ids` and `attention_mask` (B, T), as `preprocess` returns them.

        Returns:
            The features with `sentence_embedding`, float32 (B, D).

        Raises:
            RequestError: one of the two is missing, because padding could be read as text.
        """
        if missing := [name for name in ("input_ids", "attention_mask") if name not in features]:
            raise RequestError(f"forward: got no {missing[0]}, expected what preprocess returns; pass both")
        masks = features["attention_mask"].bool().cpu()
        ids = [row[mask] for row, mask in zip(features["input_ids"].cpu(), masks, strict=True)]
        vectors = embed(self.model.engine, ids, self.pooling, self.normalize, max(1, len(ids)))
        return {**features, "sentence_embedding": vectors.to(features["input_ids"].device)}

    def get_embedding_dimension(self) -> int:
        """The dimension D of a vector."""
        return dimension(self.model.config, self.pooling)

    def get_sentence_embedding_dimension(self) -> int:
        """An older name of `get_embedding_dimension`."""
        return self.get_embedding_dimension()

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes a reference to the model, not the model itself: `load` loads it from its origin.

        A hub id or `tales` is found on any machine, a path only where the file is.

        Raises:
            CheckpointError: the file cannot be written.
        """
        about = {
            **self._origin,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_seq_length": self.max_seq_length,
        }
        path = Path(output_path, CONFIG)
        try:
            path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error

    @staticmethod
    def load(input_path: str) -> RwkvEmbedding:
        """Loads the model that `save` has written a reference to.

        Raises:
            CheckpointError: the folder has no such reference, or it is damaged.
            RwkvError: as `RWKV.from_pretrained` does.
        """
        path = Path(input_path, CONFIG)
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read as a saved RwkvEmbedding: {error}") from error
        if not isinstance(about, dict) or set(about) != SAVED:
            raise CheckpointError(f"{path}: expected a JSON object of {', '.join(sorted(SAVED))}; save it again")
        return RwkvEmbedding(**about)


def _lasting(place: str | Path) -> str:
    """The name or absolute path of a model or a tokenizer, which is valid in any working directory."""
    for name, path in EMBEDDED.items():
        if str(place) in (name, str(path)):
            return name
    path = Path(place).expanduser()
    return str(path.resolve()) if path.exists() else str(place)
