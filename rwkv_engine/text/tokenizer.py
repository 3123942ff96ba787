"""Tokenizers: text to token ids and back. Tokens are byte strings, and one may end inside a character."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import tokenizers

from rwkv_engine.checks import require, require_text
from rwkv_engine.errors import TokenizerError
from rwkv_engine.text.byte_characters import BYTE_OF
from rwkv_engine.text.ids import checked_ids

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer.

    Attributes:
        name: as messages show it: a path, or the kind of the tokenizer.
        n_vocab: one more than the largest id.
        end_of_text: the id that ends a text, None if there is none.
        special_tokens: the ids of special tokens by name. They stand for no text, so no text can end with one.
    """

    name: str
    n_vocab: int
    end_of_text: int | None
    special_tokens: Mapping[str, int]

    def encode(self, text: str) -> list[int]:
        """The token ids of a text.

        Raises:
            RequestError: `text` is not a string that UTF-8 can encode.
        """

    def encode_bytes(self, data: bytes) -> list[int]:
        """The token ids of any bytes, whether they are UTF-8 or not."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty for a special token and for the padding of a model's vocabulary.

        Raises:
            RequestError: the id is outside the vocabulary.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            RequestError: an id is outside the vocabulary.
        """


class ByteTokenizer:
    """One token for each byte, for models with a vocabulary of 256."""

    N_VOCAB = 256

    def __init__(self) -> None:
        self.name = "bytes"
        self.n_vocab = self.N_VOCAB
        self.end_of_text: int | None = None
        self.special_tokens: Mapping[str, int] = {}

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text; errors as for `Tokenizer.encode`."""
        return list(require_text("text", text))

    def encode_bytes(self, data: bytes) -> list[int]:
        """The bytes themselves."""
        return list(require_bytes(data))

    def token_bytes(self, token: int) -> bytes:
        """The byte itself; errors as for `Tokenizer.token_bytes`."""
        return bytes(checked_ids([token], self.n_vocab, limit=self.n_vocab))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the bytes; errors as for `Tokenizer.decode`."""
        return bytes(checked_ids(tokens, self.n_vocab, limit=self.n_vocab)).decode(errors="replace")


class BpeTokenizer:
    """A byte-level BPE in the format of the `tokenizers` library: the 20B vocabulary, or a model's own.

    Attributes:
        library: the tokenizer of that library.

    Raises:
        TokenizerError: the file cannot be read, or its tokenizer is not byte-level.
    """

    def __init__(self, path: str | Path):
        self.name = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
            self.library = tokenizers.Tokenizer.from_str(text)
            decoder = json.loads(text).get("decoder") or {}
            self.library.no_truncation()  # a file may hold the limits of the model that it was trained for
            self.library.no_padding()
        except Exception as error:  # the library raises a bare Exception for a file that it cannot parse
            raise TokenizerError(f"{path}: no tokenizer can be read here: {error}") from error
        if decoder.get("type") != "ByteLevel":
            raise TokenizerError(
                f"{path}: expected a byte-level tokenizer (decoder ByteLevel), got decoder {decoder.get('type')}"
            )
        self.n_vocab = 1 + max(self.library.get_vocab().values(), default=-1)
        self._bytes = _token_bytes(self.library, self.n_vocab)
        self._single_bytes = {entry: token for token, entry in enumerate(self._bytes) if len(entry) == 1}
        self.end_of_text: int | None = self.library.token_to_id(END_OF_TEXT)
        added = self.library.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {entry.content: i for i, entry in added.items() if entry.special}

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, see `Tokenizer.encode`; names of special tokens in it become these tokens."""
        require_text("text", text)
        return self.library.encode(text, add_special_tokens=False).ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """The token ids of any bytes: UTF-8 is encoded as text, every other byte becomes a token of its own.

        Raises:
            TokenizerError: such a byte is not a token of this vocabulary.
        """
        tokens = []
        require_bytes(data)
        # surrogateescape decodes exactly the bytes that are not UTF-8 to U+DC80 to U+DCFF, which no UTF-8 decodes to.
        for piece in re.split("([\udc80-\udcff])", data.decode(errors="surrogateescape")):
            if "\udc80" <= piece[:1] <= "\udcff":
                tokens.append(self._single_byte(piece.encode(errors="surrogateescape")))
            elif piece:
                tokens += self.encode(piece)
        return tokens

    def _single_byte(self, byte: bytes) -> int:
        try:
            return self._single_bytes[byte]
        except KeyError:
            raise TokenizerError(
                f"{self.name}: got {byte!r}, which is not UTF-8, expected a byte that is a token of this vocabulary;"
                " give text"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, see `Tokenizer.token_bytes`."""
        [token] = checked_ids([token], self.n_vocab)
        return self._bytes[token] if token < self.n_vocab else b""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, see `Tokenizer.decode`."""
        ids = checked_ids(tokens, self.n_vocab)
        return b"".join(self._bytes[token] for token in ids if token < self.n_vocab).decode(errors="replace")


def require_bytes(data: bytes) -> bytes:
    """Checks the argument of `encode_bytes`.

    Raises:
        RequestError: it is not bytes, with the function that takes text.
    """
    require("data", data, (bytes, bytearray), lambda _: True, "bytes; encode takes text")
    return data


def _token_bytes(tokenizer: tokenizers.Tokenizer, n_vocab: int) -> list[bytes]:
    """The bytes of each id; special tokens have none."""
    table = [b""] * n_vocab
    for text, token in tokenizer.get_vocab(with_added_tokens=False).items():
        table[token] = bytes(BYTE_OF[c] for c in text if c in BYTE_OF)
    for token, added in tokenizer.get_added_tokens_decoder().items():  # as plain text, not in byte characters
        table[token] = b"" if added.special else added.content.encode()
    return table
