"""Log-probabilities in the two forms of OpenAI's protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rwkv_engine.generation.sampling import Logprob
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


def of_completion(tokenizer: Tokenizer, logprobs: Sequence[Logprob], before: int) -> dict[str, Any]:
    """The form of completions; null stands for a log-probability that is NaN, see `prompt_logprobs`.

    `before` is the number of characters of the text before the first of these tokens.
    """
    offsets = []
    for own in logprobs:
        offsets.append(before)
        before += n_characters(tokenizer, own)
    return {
        "tokens": [name_of(tokenizer, own.token) for own in logprobs],
        "token_logprobs": [None if math.isnan(own.logprob) else own.logprob for own in logprobs],
        "top_logprobs": [
            None
            if math.isnan(own.logprob)
            else {name_of(tokenizer, token): logprob for token, logprob in (*own.top, (own.token, own.logprob))}
            for own in logprobs
        ],
        "text_offset": offsets,
    }


def n_characters(tokenizer: Tokenizer, own: Logprob) -> int:
    """How many characters begin in a token."""
    return sum(byte & 0xC0 != 0x80 for byte in tokenizer.token_bytes(own.token))  # the others continue one, in UTF-8


def name_of(tokenizer: Tokenizer, token: int) -> str:
    r"""A token as text: `bytes:\xc3` if it is not a whole number of characters, its name if it is a special token."""
    data = tokenizer.token_bytes(token)
    if not data:
        return next((name for name, own in tokenizer.special_tokens.items() if own == token), "")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
