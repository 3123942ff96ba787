"""The smallest model that `Generation` can be mixed into, and what tests of it share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rwkv_engine import RWKV
from rwkv_engine.auto.generation import Generation


class Writer(Generation):
    """Over an `RWKV`; ends texts at token 0, as a model does whose configuration says nothing else."""

    def __init__(self, rwkv: RWKV, generation_config: dict[str, Any] | None = None):
        self.engine = rwkv.engine
        self.config = SimpleNamespace(vocab_size=rwkv.config.n_vocab, bos_token_id=0, eos_token_id=0)
        self.generation_config = generation_config or {}

    def _texts(self, input_ids: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
        if attention_mask is None:
            return list(input_ids)
        return [row[mask.bool()] for row, mask in zip(input_ids, attention_mask, strict=True)]


class Recorder:
    """A streamer that keeps what it is handed."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.values.append(value.clone())

    def end(self) -> None:
        self.ended += 1


def padded(texts: list[Tensor], side: str, pad: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and their mask."""
    width = max(map(len, texts))
    ids, mask = torch.full((len(texts), width), pad), torch.zeros(len(texts), width, dtype=torch.int64)
    for i, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[i, where], mask[i, where] = text, 1
    return ids, mask
