"""The World tokenizer under the names it has in the `rwkv` package."""

from __future__ import annotations

from pathlib import Path

from rwkv_engine.text import WorldTokenizer


class TRIE_TOKENIZER(WorldTokenizer):
    """A vocabulary file; `decode` is the package's: U+FFFD in place of the whole text if any of it is no UTF-8.

    Attributes:
        idx2token, token2idx: bytes by id, ids by bytes.

    Raises:
        TokenizerError: as `WorldTokenizer`.
    """

    def __init__(self, file_name: str | Path):
        super().__init__(file_name)
        self.idx2token = self._tokens
        self.token2idx = {token: i for i, token in self._tokens.items()}

    def encodeBytes(self, src: bytes) -> list[int]:
        """Token ids of any bytes."""
        return self.encode_bytes(src)

    def decodeBytes(self, tokens: list[int]) -> bytes:
        """The bytes of the ids; none for an id without any, such as 0, which ends a text."""
        return b"".join(map(self.token_bytes, tokens))

    def decode(self, tokens: list[int]) -> str:
        """The text of the ids."""
        try:
            return self.decodeBytes(tokens).decode()
        except UnicodeDecodeError:
            return "\ufffd"
