"""Goes on where a text ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.runtime.engine import Engine
from rwkv_engine.text import Tokenizer


def text_bytes(tokenizer: Tokenizer, tokens: Sequence[int]) -> bytes:
    """The bytes that tokens stand for."""
    return b"".join(map(tokenizer.token_bytes, tokens))


def state_after(engine: Engine, tokenizer: Tokenizer, snapshot: Snapshot) -> State:
    """The state after exactly the text that was seen, from which another text goes on, such as the next turn.

    It is the one that `TextStream.state` gives after that text.
    """
    if seen := unread_text(tokenizer, snapshot):
        return engine.forward(torch.tensor([seen], dtype=torch.int64), snapshot.state)[1]
    return snapshot.state


def unread_text(tokenizer: Tokenizer, snapshot: Snapshot) -> Sequence[int]:
    """The ids of the text that was seen and that the state does not include yet."""
    data = text_bytes(tokenizer, snapshot.unread)
    if snapshot.n_shown == len(data):
        return snapshot.unread
    return tokenizer.encode_bytes(data[: snapshot.n_shown]) if snapshot.n_shown else ()


def state_within(engine: Engine, snapshot: Snapshot) -> tuple[State, tuple[int]]:
    """The state before the last token that was generated, and this token, from which the same text goes on.

    Tokens are processed one at a time, as they were when they were generated, so that every bit is the same.

    Raises:
        RequestError: there is no such token.
    """
    if not snapshot.unread:
        raise RequestError("prompt: is empty, but the text of the state has ended; expected text to go on with")
    *earlier, last = snapshot.unread
    state = snapshot.state
    for token in earlier:
        _, state = engine.forward(torch.tensor([[token]], dtype=torch.int64), state)
    return state, (last,)
