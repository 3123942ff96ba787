"""Names the prefixes of a request's prompt, so that requests that begin alike find the same replica's state cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

# A prompt without messages is divided after this many characters, or token ids.
_BLOCK = 256
# A key is this many bytes; two prompts that share one by chance share a replica, and nothing else.
_BYTES = 12
_MOST = 256  # prefixes of a prompt; further ones do not count


def prefixes_of(body: bytes, owner: str = "") -> list[bytes]:
    """The keys of growing prefixes of a request's prompt, the shortest first.

    Args:
        body: the body of a request for a completion or a conversation, in JSON.
        owner: who sends it; the prompts of two owners have no key in common.

    Returns:
        A key after each message, or after each block of a text. None for bodies without a prompt.
    """
    keys, digest = list[bytes](), hashlib.sha256(owner.encode())
    try:
        for part in islice(_parts(json.loads(body)), _MOST):
            digest.update(hashlib.sha256(part).digest())
            keys.append(digest.digest()[:_BYTES])
    except (ValueError, RecursionError):  # what can just be read may still be too deep to be written
        return []
    return keys


def _parts(fields: Any) -> Iterator[bytes]:
    if not isinstance(fields, dict):
        return
    messages, prompt = fields.get("messages"), fields.get("prompt")
    if isinstance(messages, list):
        yield from (_bytes(message) for message in messages)
    elif prompt:
        while isinstance(prompt, list) and isinstance(prompt[0], list | str):  # the first of several prompts
            prompt = prompt[0] or [0]
        if isinstance(prompt, list | str):
            yield from (_bytes(prompt[i : i + _BLOCK]) for i in range(0, len(prompt), _BLOCK))


def _bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
