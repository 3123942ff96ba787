"""Where a text ended: everything that is needed to go on exactly as if it had not."""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_engine.core.state import State


@dataclass(frozen=True)
class Snapshot:
    """The state of one text, and its last tokens, which the state does not include.

    The tokens are kept beside the state because the next token is sampled from the logits after them, which a state
    does not have; and because a text that was cut may end inside of them, where a character or a stop string had only
    begun.

    Attributes:
        state: of one sequence, after everything before `unread`.
        unread: the ids that were generated after it; none if nothing was, or if a stop token has ended the text.
        n_shown: how many bytes of the text of `unread` are part of the text that its reader has seen.
    """

    state: State
    unread: tuple[int, ...] = ()
    n_shown: int = 0
