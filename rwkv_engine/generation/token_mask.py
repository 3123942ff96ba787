"""Restricts a text to what a grammar allows: `SamplingParams.allowed_tokens`.

It is a function that gets the ids generated so far in this text, in a list that it must not change, and returns those
that may follow as a bit mask: int32 words in a tensor or an array, bit i % 32 of word i // 32 for token i, in
ceil(V / 32) words. This is the layout of xgrammar and llguidance. It returns None where the text ends. The function is
called before every token, in the thread that performs the steps of all texts, so it should be fast. One that keeps what
it knows about the text must be another for each request: an object with a method `begin` is asked for the function of
each text. Where the text may end, the bits of stop tokens are set. Tokens that are not allowed get the probability 0,
as banned ones do; log-probabilities are those of the model, before the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.params import AllowedTokens, Begins


class EndOfText(Exception):
    """The function returned None: the text ends here."""


def begun(allowed: AllowedTokens | Begins | None) -> AllowedTokens | None:
    """The function for a new text."""
    return allowed.begin() if isinstance(allowed, Begins) else allowed


def apply_mask(logits: Tensor, allowed: AllowedTokens, tokens: Sequence[int]) -> None:
    """Sets the logits of tokens that may not follow to -inf.

    Args:
        logits: (V,) floats, changed in place.
        allowed: the function.
        tokens: the ids generated so far.

    Raises:
        EndOfText: it returns None.
        RequestError: it does not return a bit mask, or no token is left, because it allows none or only banned ones.
        Exception: whatever the function raises.
    """
    words = words_of(allowed, tokens, len(logits))
    logits.masked_fill_(~unpacked(words, len(logits), logits.device), -torch.inf)
    if logits.amax() == -torch.inf:
        raise none_left(tokens)


def none_left(tokens: Sequence[int]) -> RequestError:
    """The error where a mask allows no token."""
    return RequestError(
        f"allowed_tokens: no token may follow the {len(tokens)} that were generated; where a text may end, allow a stop"
        " token"
    )


def words_of(allowed: AllowedTokens, tokens: Sequence[int], n_vocab: int) -> np.ndarray[Any, Any]:
    """The mask that a function returns, (ceil(V / 32),) int32.

    Raises:
        EndOfText: it returns None.
        RequestError: it returns something else.
        Exception: whatever the function raises.
    """
    mask = allowed(tokens)
    if mask is None:
        raise EndOfText
    words = mask.numpy(force=True) if isinstance(mask, Tensor) else mask
    n_words = -(-n_vocab // 32)
    if not isinstance(words, np.ndarray) or words.dtype != np.int32 or words.size != n_words:
        got = f"{words.dtype} of shape {words.shape}" if isinstance(words, np.ndarray) else shown(mask)
        raise RequestError(
            f"allowed_tokens: the function returned {got}, expected int32 in {n_words} words, one bit for each of"
            f" {n_vocab} tokens"
        )
    return words.reshape(-1)


def is_any(words: np.ndarray[Any, Any], n_vocab: int) -> bool:
    """Whether a mask (ceil(V / 32),) int32 allows a token; bits after those of V tokens do not count."""
    whole, rest = divmod(n_vocab, 32)
    return bool(words[:whole].any() or (rest and int(words[-1]) & ((1 << rest) - 1)))


def unpacked(words: np.ndarray[Any, Any], n_vocab: int, device: torch.device | str = "cpu") -> Tensor:
    """The bits of masks, (..., ceil(V / 32)) int32 -> (..., V) bool on a device, which unpacks them."""
    if torch.device(device).type == "cpu":
        little_endian = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
        bits = np.unpackbits(little_endian, axis=-1, count=n_vocab, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_))
    moved = torch.from_numpy(np.ascontiguousarray(words)).to(device)
    shifted = moved.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=device)
    return (shifted & 1).flatten(-2)[..., :n_vocab].bool()


def packed(allowed: Tensor) -> Tensor:
    """(ceil(V / 32),) int32: the mask of the tokens whose value in (V,) bool is true."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, dtype=np.bool_)
    padded[: len(allowed)] = allowed.numpy(force=True)
    return torch.from_numpy(np.packbits(padded, bitorder="little").view("<i4").astype(np.int32))
