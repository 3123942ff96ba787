"""Tokens to text as they come, never half a character."""

from __future__ import annotations

import codecs

from rwkv_engine.text.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes token by token; bytes of an unfinished character wait for the rest."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that is complete with this token; may be empty."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left at the end: U+FFFD if the text stopped inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)
