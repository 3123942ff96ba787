"""Where one text stands in its format, and the masks of the tokens that may follow in several texts."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_engine.errors import RequestError
from rwkv_engine.structured.vocabulary import library


class FormatError(RequestError):
    """A text cannot be continued in its format, which is too complex at this place."""


class Matcher:
    """Follows one text through its format. Only one thread at a time may use it.

    Attributes:
        inner: the library's matcher.
        n_tokens: the size of the library's vocabulary, whose last token ends a text.
    """

    def __init__(self, inner: Any, n_tokens: int):
        self.inner = inner
        self.n_tokens = n_tokens
        self._n_read = 0

    def read(self, tokens: Sequence[int]) -> bool:
        """Reads the tokens that were added to the text, and returns whether it is complete: nothing more may follow.

        Args:
            tokens: all ids of the text so far.

        Raises:
            FormatError: the text left the format, or the format is too complex here.
        """
        while self._n_read < len(tokens) and self.inner.consume_token(tokens[self._n_read]):
            self._n_read += 1
        self.check()
        return bool(self.inner.is_stopped())

    def check(self) -> None:
        """Checks that the matcher works.

        Raises:
            FormatError: it does not: the format is too complex at this place.
        """
        if self.inner.is_error():
            reason = " ".join(re.split("<state>|<non-verbose/>", self.inner.get_error())[0].split())
            reason = reason.replace("NoExtensionBias", "no token may follow there, and the text may not end")
            raise FormatError(f"the text cannot follow its format beyond {self._n_read} tokens: {reason[:200]}")


def fill_masks(matchers: Sequence[Matcher], stop_tokens: Sequence[Sequence[int]], n_vocab: int) -> NDArray[np.int32]:
    """The tokens that may follow in each text. The masks are computed in parallel, without the interpreter's lock.

    Args:
        matchers: of N texts; they have read all tokens. One that fails is in its error state afterwards.
        stop_tokens: for each text, the tokens that end it. They are allowed exactly where the format may end, whatever
            their text.
        n_vocab: V of the model.

    Returns:
        (N, ceil(V / 32)) int32, bit i % 32 of word i // 32 for token i.
    """
    words = np.zeros((len(matchers), -(-n_vocab // 32)), dtype=np.int32)
    for size in {matcher.n_tokens for matcher in matchers}:  # one, because a model has one vocabulary
        rows = [row for row, matcher in enumerate(matchers) if matcher.n_tokens == size]
        end = size - 1
        filled = np.zeros((len(rows), -(-size // 32)), dtype=np.int32)
        inner = [(matchers[row].inner, i) for i, row in enumerate(rows)]
        if len(inner) == 1:
            inner[0][0].unsafe_compute_mask_ptr(filled.ctypes.data, filled.nbytes)
        else:
            _executor().unsafe_compute_mask_ptr(inner, filled.ctypes.data, filled[0].nbytes, len(rows))
        for row, mask in zip(rows, filled, strict=True):
            may_end = mask[end // 32] >> (end % 32) & 1
            for token in stop_tokens[row]:
                bit = np.array([1 << (token % 32)], dtype=np.uint32).view(np.int32)[0]
                if token < n_vocab:
                    mask[token // 32] = mask[token // 32] | bit if may_end else mask[token // 32] & ~bit
            words[row, : filled.shape[1]] = mask[: words.shape[1]]
    return words


@lru_cache(maxsize=1)
def _executor() -> Any:
    """The library's threads."""
    return library().LLExecutor(min(os.cpu_count() or 1, 16))
