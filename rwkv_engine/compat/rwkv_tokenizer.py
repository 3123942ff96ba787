"""The World tokenizer under the names it has in the `rwkv` package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rwkv_engine.text import WorldTokenizer
from rwkv_engine.text.ids import checked_ids


class TRIE_TOKENIZER(WorldTokenizer):
    """A vocabulary file. As in the package, `decode` returns U+FFFD for the whole text if any of it is not UTF-8.

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
        """The token ids of any bytes."""
        return self.encode_bytes(src)

    def decodeBytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes of token ids; id 0, which ends a text, has none. Errors as for `Tokenizer.decode`."""
        return b"".join(map(self.token_bytes, checked_ids(tokens, self.n_vocab)))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; errors as for `Tokenizer.decode`."""
        try:
            return self.decodeBytes(tokens).decode()
        except UnicodeDecodeError:
            return "\ufffd"
