"""Text to token ids and back, as bytes: a token may hold half a character."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Protocol

import tokenizers

from rwkv_engine.errors import TokenizerError
from rwkv_engine.text.byte_characters import BYTE_OF

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer.

    Attributes:
        name: for people: a path, or what kind it is.
        n_vocab: one more than the largest id.
        end_of_text: the id that ends a text, None if there is none.
    """

    name: str
    n_vocab: int
    end_of_text: int | None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes, UTF-8 or not."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty for a special token."""

    def decode(self, tokens: list[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""


class ByteTokenizer:
    """One token per byte, for models with a vocabulary of 256."""

    N_VOCAB = 256

    def __init__(self) -> None:
        self.name = "bytes"
        self.n_vocab = self.N_VOCAB
        self.end_of_text: int | None = None

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text."""
        return list(text.encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        """The bytes themselves."""
        return list(data)

    def token_bytes(self, token: int) -> bytes:
        """The byte itself."""
        return bytes([token])

    def decode(self, tokens: list[int]) -> str:
        """The text of the bytes."""
        return bytes(tokens).decode(errors="replace")


class BpeTokenizer:
    """A byte-level BPE in the format of the `tokenizers` library: the 20B vocabulary, or a model's own.

    Attributes:
        library: that library's tokenizer.

    Raises:
        TokenizerError: the file cannot be read, or is not byte-level.
    """

    def __init__(self, path: str | Path):
        self.name = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
            self.library = tokenizers.Tokenizer.from_str(text)
            decoder = json.loads(text).get("decoder") or {}
            self.library.no_truncation()  # a file may carry the limits of the model it was trained with
            self.library.no_padding()
        except Exception as error:  # the library raises bare Exception for a file it cannot parse
            raise TokenizerError(f"{path}: no tokenizer can be read here: {error}") from error
        if decoder.get("type") != "ByteLevel":
            raise TokenizerError(
                f"{path}: expected a byte-level tokenizer (decoder ByteLevel), got decoder {decoder.get('type')}"
            )
        self.n_vocab = 1 + max(self.library.get_vocab().values(), default=-1)
        self._bytes = _token_bytes(self.library, self.n_vocab)
        self._single_bytes = {entry: token for token, entry in enumerate(self._bytes) if len(entry) == 1}
        self.end_of_text = self.library.token_to_id(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens written out in it are recognised."""
        return self.library.encode(text, add_special_tokens=False).ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes: what is UTF-8 is encoded as text, each byte between as a token of its own.

        Raises:
            TokenizerError: such a byte is no token of this vocabulary.
        """
        tokens = []
        # surrogateescape turns just the bytes that are no UTF-8 into U+DC80 to U+DCFF, which no UTF-8 decodes to.
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
                f"{self.name}: got {byte!r}, which is no UTF-8, expected a byte that is a token of this vocabulary;"
                " give text"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty for a special token and for an id without one."""
        return self._bytes[token] if token < self.n_vocab else b""

    def decode(self, tokens: list[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode(errors="replace")


def _token_bytes(tokenizer: tokenizers.Tokenizer, n_vocab: int) -> list[bytes]:
    """The bytes of each id; none for special tokens."""
    table = [b""] * n_vocab
    for text, token in tokenizer.get_vocab(with_added_tokens=False).items():
        table[token] = bytes(BYTE_OF[c] for c in text if c in BYTE_OF)
    for token, added in tokenizer.get_added_tokens_decoder().items():  # plain text, not written in byte characters
        table[token] = b"" if added.special else added.content.encode()
    return table
