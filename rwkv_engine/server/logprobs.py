"""Log-probabilities in the two forms of OpenAI's protocol."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any

from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.text import Tokenizer


def of_chat(tokenizer: Tokenizer, logprobs: Sequence[Logprob]) -> dict[str, Any]:
    """The form of conversations."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token)
        return {"token": name_of(tokenizer, token), "logprob": logprob, "bytes": list(data)}

    return {
        "content": [
            {**entry(own.token, own.logprob), "top_logprobs": [entry(*other) for other in own.top]} for own in logprobs
        ],
        "refusal": None,
    }


def of_completion(tokenizer: Tokenizer, logprobs: Sequence[Logprob], offsets: Offsets) -> dict[str, Any]:
    """The form of completions; null stands for a log-probability that is NaN, see `prompt_logprobs`.

    `offsets` are those of the text, whose next tokens these are.
    """
    return {
        "tokens": [name_of(tokenizer, own.token) for own in logprobs],
        "token_logprobs": [None if math.isnan(own.logprob) else own.logprob for own in logprobs],
        "top_logprobs": [
            None
            if math.isnan(own.logprob)
            else {name_of(tokenizer, token): logprob for token, logprob in (*own.top, (own.token, own.logprob))}
            for own in logprobs
        ],
        "text_offset": [offsets.add(tokenizer.token_bytes(own.token)) for own in logprobs],
    }


class Offsets:
    """The places of the tokens of one text, in characters; bytes that are none count as what decoding puts for them."""

    def __init__(self) -> None:
        """Begins with no tokens."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n = 0  # characters that are complete

    def add(self, token: bytes) -> int:
        """Adds a token, and returns the index of the character to which its first byte belongs."""
        self._n += len(self._decoder.decode(token[:1]))
        is_inside = bool(self._decoder.getstate()[0])  # a character that is not complete
        offset = self._n + is_inside - bool(token)
        self._n += len(self._decoder.decode(token[1:]))
        return offset


def name_of(tokenizer: Tokenizer, token: int) -> str:
    r"""A token as text: `bytes:\xc3` if it is not a whole number of characters, its name if it is a special token."""
    data = tokenizer.token_bytes(token)
    if not data:
        return next((name for name, own in tokenizer.special_tokens.items() if own == token), "")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
