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
from rwkv_engine.runtime.transfer import moved
from rwkv_engine.structured import Matcher, fill_masks


def masks_of(requests: Sequence[Request], n_vocab: int, device: torch.device) -> Tensor | None:
    """The tokens that may follow in each text. An error is that of its request alone.

    Args:
        requests: B requests; those that have failed already may get any token.
        n_vocab: V.
        device: where the masks are needed.

    Returns:
        (B, ceil(V / 32)) int32 as `draw_tokens` takes them, or None where all tokens of all texts may follow.
    """
    limited = [r for r in requests if r.allowed is not None and not r.error]
    masks = _of_formats([r for r in limited if isinstance(r.allowed, Matcher)], n_vocab)
    for request in limited:
        if not isinstance(request.allowed, Matcher) and request.allowed is not None:
            try:
                masks[request] = words_of(request.allowed(request.tokens), n_vocab)
            except Exception as error:
                request.error = error
    if not masks:
        return None
    everything = np.full(-(-n_vocab // 32), -1, dtype=np.int32)
    return moved(torch.from_numpy(np.stack([masks.get(request, everything) for request in requests])), device)


def none_allowed(request: Request) -> RequestError:
    """The error of a text in which no token may follow."""
    return RequestError(
        f"allowed_tokens: no token may follow the {len(request.tokens)} that were generated; where a text may end,"
        " allow a stop token"
    )


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


def packed(allowed: Tensor) -> Tensor:
    """(ceil(V / 32),) int32: the mask of the tokens whose value in (V,) bool is true."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, dtype=np.bool_)
    padded[: len(allowed)] = allowed.numpy(force=True)
    return torch.from_numpy(np.packbits(padded, bitorder="little").view("<i4").astype(np.int32))
