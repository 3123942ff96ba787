"""`RWKV.embed` as a module of the sentence-transformers package.

    from sentence_transformers import SentenceTransformer
    from rwkv_engine.sentence import RwkvEmbedding

    model = SentenceTransformer(modules=[RwkvEmbedding("tales")])
    model.encode(["Once upon a time there was a king.", "The soup needs salt."])

The package is not needed to import this: it asks of a module nothing but methods of certain names.
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
    """The first module of a `SentenceTransformer`, and the only one it needs: texts in, vectors out.

    The model stays where its strategy puts it: `to(device)` moves nothing, and there is nothing to train.

    Attributes:
        model: what reads the texts.
        pooling, normalize: as for `RWKV.embed`.
        max_seq_length: longer texts are cut after so many tokens; None, the default, reads them whole.
    """

    # What `encode` may hand on to `forward`: nothing.
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
        """Loads a model, see `RWKV.from_pretrained`; one that is loaded already is used as it is.

        Raises:
            RwkvError: as `RWKV.from_pretrained` and `RWKV.embed` do.
        """
        super().__init__()
        if isinstance(model, RWKV):
            if tokenizer or revision or strategy != "cpu fp32":
                raise RequestError("strategy, tokenizer and revision are those of the RWKV given; leave them out")
            self.model, strategy = model, str(model.strategy)
            model = model.source
            # One found beside the model will be found again.
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
        """The model's."""
        return self.model.tokenizer

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Token ids of B texts, padded on the right.

        Args:
            inputs: the texts.
            prompt: what to put before each.
            kwargs: what the package may say besides; not used.

        Returns:
            `input_ids` and `attention_mask` (B, T), int64; the mask is 0 where a text has ended.

        Raises:
            RequestError: one of them is no text, or an empty one.
        """
        texts = [f"{prompt}{text}" if prompt and isinstance(text, str) else text for text in inputs]
        ids = [row[: self.max_seq_length] for row in ids_of(self.tokenizer, texts)]
        masks = [torch.ones_like(row) for row in ids]
        padded = (nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (ids, masks))
        return dict(zip(("input_ids", "attention_mask"), padded, strict=True))

    def tokenize(self, texts: Sequence[str], **kwargs: Any) -> dict[str, Tensor]:
        """`preprocess`, as releases before 5.4 call it."""
        return self.preprocess(texts, **kwargs)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds `sentence_embedding` (B, D) float32 to what `preprocess` returned; padding is not read."""
        masks = features["attention_mask"].bool().cpu()
        ids = [row[mask] for row, mask in zip(features["input_ids"].cpu(), masks, strict=True)]
        vectors = embed(self.model.engine, ids, self.pooling, self.normalize, max(1, len(ids)))
        return {**features, "sentence_embedding": vectors.to(features["input_ids"].device)}

    def get_embedding_dimension(self) -> int:
        """Numbers in a vector."""
        return dimension(self.model.config, self.pooling)

    def get_sentence_embedding_dimension(self) -> int:
        """The same by its older name."""
        return self.get_embedding_dimension()

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes which model this is, not the model: `load` takes it from where it came from.

        A hub id or `tales` is found on any machine, a path only where the file is.
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
            raise RequestError(f"{path}: the settings cannot be written: {error.strerror or error}") from error

    @staticmethod
    def load(input_path: str) -> RwkvEmbedding:
        """What `save` wrote.

        Raises:
            CheckpointError: nothing of the kind is there.
            RwkvError: as `RWKV.from_pretrained` does.
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
