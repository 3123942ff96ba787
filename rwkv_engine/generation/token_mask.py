"""Restricts a text to what a grammar allows: `SamplingParams.allowed_tokens`.

It is a function that gets the ids generated so far in this text, in a list that it must not change, and returns those
that may follow as a bit mask: int32 words in a tensor or an array, bit i % 32 of word i // 32 for token i, in
ceil(V / 32) words. This is the layout of xgrammar and llguidance. The function is called before every token, in the
thread that performs the steps of all texts, so it should be fast; one that keeps what it knows about the text must be
another for each request. Where the text may end, the bits of stop tokens are set. Tokens that are not allowed get the
probability 0, as banned ones do; log-probabilities are those of the model, before the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.params import AllowedTokens


def apply_mask(logits: Tensor, allowed: AllowedTokens, tokens: Sequence[int]) -> None:
    """Sets the logits of tokens that may not follow to -inf.

    Args:
        logits: (V,) floats, changed in place.
        allowed: the function.
        tokens: the ids generated so far.

    Raises:
        RequestError: it does not return a bit mask, or no token is left, because it allows none or only banned ones.
        Exception: whatever the function raises.
    """
    logits.masked_fill_(~unpacked(allowed(tokens), len(logits)).to(logits.device), -torch.inf)
    if logits.amax() == -torch.inf:
        raise RequestError(
            f"allowed_tokens: no token may follow the {len(tokens)} that were generated; where a text may end, allow a"
            " stop token"
        )


def unpacked(mask: Any, n_vocab: int) -> Tensor:
    """(V,) bool on the CPU: the bits of a mask.

    Args:
        mask: ceil(V / 32) int32 words in a tensor or an array of any shape.
        n_vocab: V.

    Raises:
        RequestError: the mask has another type or size.
    """
    words = mask.numpy(force=True) if isinstance(mask, Tensor) else mask
    n_words = -(-n_vocab // 32)
    if not isinstance(words, np.ndarray) or words.dtype != np.int32 or words.size != n_words:
        got = f"{words.dtype} of shape {words.shape}" if isinstance(words, np.ndarray) else shown(mask)
        raise RequestError(
            f"allowed_tokens: the function returned {got}, expected int32 in {n_words} words, one bit for each of"
            f" {n_vocab} tokens"
        )
    little_endian = np.ascontiguousarray(words.reshape(-1), dtype="<i4").view(np.uint8)
    return torch.from_numpy(np.unpackbits(little_endian, count=n_vocab, bitorder="little").view(np.bool_))


def packed(allowed: Tensor) -> Tensor:
    """(ceil(V / 32),) int32: the mask of the tokens whose value in (V,) bool is true."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, dtype=np.bool_)
    padded[: len(allowed)] = allowed.numpy(force=True)
    return torch.from_numpy(np.packbits(padded, bitorder="little").view("<i4").astype(np.int32))
