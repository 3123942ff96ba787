"""The line editor of `rwkv-engine chat`: editing, history, and completion of commands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "> "


def typed_lines(commands: Sequence[str]) -> Iterator[str]:
    """The lines that the user types, until Ctrl-D.

    Args:
        commands: words that are completed at the beginning of a line.
    """
    words = WordCompleter(list(commands), sentence=True)
    session: PromptSession[str] = PromptSession(
        history=_history(), completer=words, complete_while_typing=False, key_bindings=_keys()
    )
    while True:
        try:
            yield session.prompt(PROMPT)
        except KeyboardInterrupt:  # Ctrl-C at the prompt discards the line, as in shells
            continue
        except EOFError:
            return


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """The history of all conversations, or of this one where no file can be written."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "rwkv_engine"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chat_history").touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(folder / "chat_history"))
