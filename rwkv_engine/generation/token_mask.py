"""Restricts texts to what grammars allow: `SamplingParams.allowed_tokens`.

It is a format, see `structured`, or a function that gets the ids generated so far in this text, in a list that it must
not change, and returns those that may follow as a bit mask: int32 words in a tensor or an array, bit i % 32 of word i
// 32 for token i, in ceil(V / 32) words. This is the layout of xgrammar and llguidance. The function is called before
every token, in the thread that performs the steps of all texts, so it should be fast; one that keeps what it knows
about the text must be another for each request. Where the text may end, the bits of stop tokens are set. Tokens that
are not allowed get the probability 0, as banned ones do; log-probabilities are those of the model, before the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.request import Request
from rwkv_engine.structured import Matcher, fill_masks


def apply_masks(logits: Tensor, requests: Sequence[Request]) -> None:
    """Sets the logits of tokens that may not follow to -inf. An error is that of its request alone.

    Args:
        logits: (B, V) float64, changed in place; or float32, where the smallest number stands for -inf.
        requests: B requests; those that have failed already are left out.
    """
    n_vocab, limited = logits.shape[1], [r for r in requests if r.allowed is not None and not r.error]
    masks = _of_formats([r for r in limited if isinstance(r.allowed, Matcher)], n_vocab)
    for request in limited:
        if not isinstance(request.allowed, Matcher) and request.allowed is not None:
            try:
                masks[request] = words_of(request.allowed(request.tokens), n_vocab)
            except Exception as error:
                request.error = error
    rows = [row for row, request in enumerate(requests) if request in masks]
    if not rows:
        return
    words = torch.from_numpy(~np.stack([masks[requests[row]] for row in rows]))
    refused = unpacked(words.to(logits.device), n_vocab)
    if len(rows) == len(logits):
        logits.masked_fill_(refused, _never(logits))
    else:
        logits[rows] = logits[rows].masked_fill(refused, _never(logits))


def check_allowed(logits: Tensor, ids: Tensor, requests: Sequence[Request]) -> None:
    """Gives an error to requests whose sampled token was not allowed: a token is sampled so only where none is allowed.

    Args:
        logits: (B, V) after `apply_masks`.
        ids: (B,) the sampled tokens.
        requests: B requests.
    """
    if all(request.allowed is None for request in requests):
        return
    found = logits.gather(1, ids.clamp(0, logits.shape[1] - 1).unsqueeze(1))[:, 0].tolist()
    for request, value in zip(requests, found, strict=True):
        if request.allowed is not None and not request.error and value == _never(logits):
            request.error = RequestError(
                f"allowed_tokens: no token may follow the {len(request.tokens)} that were generated; where a text may"
                " end, allow a stop token"
            )


def _never(logits: Tensor) -> float:
    """What the logits of tokens that may not follow are set to."""
    return -torch.inf if logits.dtype == torch.float64 else torch.finfo(logits.dtype).min


def _of_formats(requests: Sequence[Request], n_vocab: int) -> dict[Request, NDArray[np.int32]]:
    """The masks of requests with formats, except of those that fail."""
    if not requests:
        return {}
    matchers = [cast(Matcher, request.allowed) for request in requests]
    stops = [request.sampler.params.stop_tokens for request in requests]
    masks = dict[Request, NDArray[np.int32]]()
    for request, matcher, mask in zip(requests, matchers, fill_masks(matchers, stops, n_vocab), strict=True):
        try:
            matcher.check()
            masks[request] = mask
        except RequestError as error:
            request.error = error
    return masks


def words_of(mask: Any, n_vocab: int) -> NDArray[np.int32]:
    """(ceil(V / 32),) int32: the words of a mask.

    Args:
        mask: so many int32 words in a tensor or an array of any shape.
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
    return words.reshape(-1)


def unpacked(words: Tensor, n_vocab: int) -> Tensor:
    """(B, V) bool: the bits of (B, ceil(V / 32)) int32 words, on their device."""
    if words.is_cpu:  # where NumPy is several times as fast
        little_endian = np.ascontiguousarray(words.numpy(), dtype="<i4").view(np.uint8)
        return torch.from_numpy(np.unpackbits(little_endian, axis=1, count=n_vocab, bitorder="little").view(np.bool_))
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> bits & 1).bool().flatten(1)[:, :n_vocab]


def packed(allowed: Tensor) -> Tensor:
    """(ceil(V / 32),) int32: the mask of the tokens whose value in (V,) bool is true."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, dtype=np.bool_)
    padded[: len(allowed)] = allowed.numpy(force=True)
    return torch.from_numpy(np.packbits(padded, bitorder="little").view("<i4").astype(np.int32))
