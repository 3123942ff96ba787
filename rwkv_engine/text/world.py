"""The tokenizer of the World models: greedy longest match over a vocabulary of byte strings."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from rwkv_engine.errors import TokenizerError
from rwkv_engine.text.byte_trie import Encode, byte_trie

_BYTE_ESCAPE = r"""\\(?:[\\'"nrt]|x[0-9a-f]{2})"""
_TEXT_ESCAPE = rf"(?:{_BYTE_ESCAPE}|\\u[0-9a-f]{{4}}|\\U[0-9a-f]{{8}})"


def _quoted(escape: str) -> str:
    return rf"""(?:'(?:[^'\\]|{escape})*'|"(?:[^"\\]|{escape})*")"""


# Id, one str or bytes literal as Python's repr writes it, length. Nothing else ever comes before ast.literal_eval,
# which runs no code anyway.
_LINE = re.compile(rf"([0-9]{{1,9}}) (b{_quoted(_BYTE_ESCAPE)}|{_quoted(_TEXT_ESCAPE)}) ([0-9]{{1,9}})")


class WorldTokenizer:
    """A vocabulary file with lines `id 'repr' length`; the file is parsed, never evaluated.

    Id 0, which no line may have, ends a text. Text holds no special tokens: `<|endoftext|>` is so many characters.

    Raises:
        TokenizerError: the file cannot be read, a line is malformed, or a byte is no token.
    """

    def __init__(self, path: str | Path):
        self.name = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: no vocabulary can be read here: {error}") from error
        self._tokens = _parse(self.name, text)
        self.n_vocab = 1 + next(reversed(self._tokens))
        self.end_of_text: int | None = 0

    @functools.cached_property
    def _encode(self) -> Encode:
        return byte_trie(self._tokens)  # only now: who merely looks at a model compiles nothing

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._encode(text.encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes."""
        return self._encode(data)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty for the end of text and for an id without one."""
        return self._tokens.get(token, b"")

    def decode(self, tokens: list[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode(errors="replace")


def _parse(name: str, text: str) -> dict[int, bytes]:
    """The bytes of each id, in the order of the ids, which is that of the lines."""
    tokens: dict[int, bytes] = {}
    seen: dict[bytes, int] = {}
    last = 0
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        token, value = _parse_line(f"{name}, line {number}", line)
        if token <= last:
            raise TokenizerError(f"{name}, line {number}: id {token} after {last}, expected ids that grow, from 1")
        if value in seen:
            raise TokenizerError(f"{name}, line {number}: {value!r} is token {seen[value]} already, expected a new one")
        tokens[token], seen[value], last = value, token, token
    missing = [bytes([byte]) for byte in range(256) if bytes([byte]) not in seen]
    if missing:
        raise TokenizerError(
            f"{name}: expected a token for each of the 256 bytes, got none for {len(missing)} of them, {missing[0]!r}"
            " first; take an unabridged vocabulary"
        )
    return tokens


def _parse_line(where: str, line: str) -> tuple[int, bytes]:
    shown = line if len(line) <= 80 else line[:80] + "..."
    match = _LINE.fullmatch(line)
    if not match:
        raise TokenizerError(
            f"{where}: expected `id 'text' length`, got {shown!r}; it is no World vocabulary, or damaged"
        )
    token, literal, length = match.groups()
    try:
        value = ast.literal_eval(literal)
        value = value.encode() if isinstance(value, str) else value
    except (SyntaxError, ValueError) as error:
        raise TokenizerError(f"{where}: expected a text or bytes literal, got {shown!r}: {error}") from error
    if len(value) != int(length) or not value:
        raise TokenizerError(f"{where}: expected {length} bytes, at least one; got {len(value)} in {shown!r}")
    return int(token), value
