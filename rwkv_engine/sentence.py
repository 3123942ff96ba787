"""`RWKV.embed` as a module of the sentence-transformers package.

    from sentence_transformers import SentenceTransformer
    from rwkv_engine.sentence import RwkvEmbedding

    model = SentenceTransformer(modules=[RwkvEmbedding("tales")])
    model.encode(["Once upon a time there was a king.", "The soup needs salt."])

This module can be imported without that package, which only requires methods with certain names.
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
from rwkv_engine.storage.atomic import replace_atomically
from rwkv_engine.storage.json_object import read_json
from rwkv_engine.text import Tokenizer

CONFIG = "rwkv_embedding.json"
SAVED = {"model", "strategy", "tokenizer", "revision", "pooling", "normalize", "max_seq_length"}


class RwkvEmbedding(nn.Module):
    """A module that computes the embeddings of a `SentenceTransformer`, which needs no other module.

    The model stays on the devices of its strategy: `to(device)` has no effect. It cannot be trained.

    Attributes:
        model: the model that computes the vectors.
        pooling, normalize: as for `RWKV.embed`.
        max_seq_length: longer texts are truncated to this number of tokens; None, the default, does not truncate.
    """

    # The arguments that `encode` passes on to `forward`: none.
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
        """Loads a model as `RWKV.from_pretrained` does; an `RWKV` is used as it is.

        Raises:
            RwkvError: for the reasons for which `RWKV.from_pretrained` and `RWKV.embed` raise it.
        """
        super().__init__()
        if isinstance(model, RWKV):
            if tokenizer or revision or strategy != "cpu fp32":
                raise RequestError("strategy, tokenizer and revision are those of the RWKV given; leave them out")
            self.model, strategy = model, str(model.strategy)
            model = model.source
            # A tokenizer next to the model will be found again.
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
        """Converts B texts to token ids, padded on the right.

        Args:
            inputs: the texts.
            prompt: a text to put before each of them.
            kwargs: ignored; sentence-transformers may pass further arguments.

        Returns:
            `input_ids` and `attention_mask`, (B, T) int64; the mask is 0 for padding.

        Raises:
            RequestError: one of the texts is not a string, or is empty.
        """
        texts = [f"{prompt}{text}" if prompt and isinstance(text, str) else text for text in inputs]
        ids = [row[: self.max_seq_length] for row in ids_of(self.tokenizer, texts)]
        masks = [torch.ones_like(row) for row in ids]
        padded = (nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (ids, masks))
        return dict(zip(("input_ids", "attention_mask"), padded, strict=True))

    def tokenize(self, texts: Sequence[str], **kwargs: Any) -> dict[str, Tensor]:
        """`preprocess` under its name in releases before 5.4."""
        return self.preprocess(texts, **kwargs)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds `sentence_embedding`, (B, D) float32, to the result of `preprocess`. Padding has no effect on it.

        Raises:
            RequestError: the ids or the mask are missing; without a mask padding would be read as text.
        """
        if missing := [name for name in ("input_ids", "attention_mask") if name not in features]:
            raise RequestError(f"forward: got no {missing[0]}, expected what preprocess returns; pass both")
        masks = features["attention_mask"].bool().cpu()
        ids = [row[mask] for row, mask in zip(features["input_ids"].cpu(), masks, strict=True)]
        vectors = embed(self.model.engine, ids, self.pooling, self.normalize, max(1, len(ids)))
        return {**features, "sentence_embedding": vectors.to(features["input_ids"].device)}

    def get_embedding_dimension(self) -> int:
        """The dimension of the vectors."""
        return dimension(self.model.config, self.pooling)

    def get_sentence_embedding_dimension(self) -> int:
        """`get_embedding_dimension` under its older name."""
        return self.get_embedding_dimension()

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes the name or path of the model and the options, not the weights; `load` loads the model from there.

        A hub id or `tales` works on any machine, a path only where that file exists.

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
            with replace_atomically(path) as temporary:
                temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error

    @staticmethod
    def load(input_path: str) -> RwkvEmbedding:
        """Loads what `save` wrote.

        Raises:
            CheckpointError: there is no such file, or it cannot be read.
            RwkvError: for the reasons for which `RWKV.from_pretrained` raises it.
        """
        path = Path(input_path, CONFIG)
        about = read_json(path)
        if set(about) != SAVED:
            raise CheckpointError(f"{path}: expected a JSON object of {', '.join(sorted(SAVED))}; save it anew")
        return RwkvEmbedding(**about)


def _lasting(place: str | Path) -> str:
    """The name or the path of a model or a tokenizer, as it can be found from any folder."""
    for name, path in EMBEDDED.items():
        if str(place) in (name, str(path)):
            return name
    path = Path(place).expanduser()
    return str(path.resolve()) if path.exists() else str(place)
