"""Which token ids a tokenizer accepts: one rule for all tokenizers."""

from __future__ import annotations

from typing import Any

from rwkv_engine.checks import require_ids

PADDING = 512  # a model's vocabulary may be its tokenizer's, rounded up to a multiple of this


def padded(n_vocab: int) -> int:
    """The largest vocabulary that a model with this tokenizer can have."""
    return -(-n_vocab // PADDING) * PADDING


def checked_ids(tokens: Any, n_vocab: int, limit: int | None = None) -> list[int]:
    """Token ids to decode. Ids from `n_vocab` up to the padding of a model are accepted: they stand for no text.

    Args:
        tokens: ids in a list, a tensor or an array of one dimension.
        n_vocab: of the tokenizer.
        limit: ids must be below it; None for the padded vocabulary.

    Raises:
        RequestError: an id outside the vocabulary, with both.
    """
    limit = padded(n_vocab) if limit is None else limit
    padding = f", padded to {limit}" if limit > n_vocab else ""
    return require_ids("tokens", tokens, limit, f"this tokenizer's vocabulary of {n_vocab}{padding}")
