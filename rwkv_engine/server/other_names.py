"""Fields of vLLM's and llama.cpp's servers that this one has under other names, or not at all.

Ignoring them would answer with another text than the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from rwkv_engine.server.errors import ApiError


class _Other(NamedTuple):
    """What such a field becomes here.

    Attributes:
        instead: what to use.
        harmless: the values that change nothing.
    """

    instead: str
    harmless: tuple[Any, ...] = ()


_PENALTIES = _Other("use presence_penalty and frequency_penalty", (1,))
_NO_MINIMUM = _Other("leave it out; there is no shortest length", (0, False))
OTHER_NAMES = {
    "guided_json": _Other("use structured_outputs.json or response_format"),
    "guided_regex": _Other("use structured_outputs.regex"),
    "guided_choice": _Other("use structured_outputs.choice"),
    "guided_grammar": _Other("use structured_outputs.grammar"),
    "grammar": _Other("use structured_outputs.grammar", ("",)),
    "json_schema": _Other("use structured_outputs.json or response_format"),
    "n_predict": _Other("use max_tokens"),
    "repetition_penalty": _PENALTIES,
    "repeat_penalty": _PENALTIES,
    "min_tokens": _NO_MINIMUM,
    "ignore_eos": _NO_MINIMUM,
    "stop_token_ids": _Other("use stop, with strings", ([],)),
    "bad_words": _Other("use logit_bias, with token ids", ([],)),
    "chat_template": _Other("the server's option --template sets it"),
}


def require_own_names(fields: Mapping[str, Any]) -> None:
    """Checks the unknown fields of a request.

    Raises:
        ApiError: one of them is known to other servers, and would change the text (400).
    """
    for name, other in OTHER_NAMES.items():
        got = fields.get(name)
        if got is not None and got not in other.harmless:
            message = f"{name}: is not supported by this server; {other.instead}"
            raise ApiError(HTTPStatus.BAD_REQUEST, message, name, "unsupported_parameter")
