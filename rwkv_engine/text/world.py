"""The tokenizer of the World models: greedy longest match over a vocabulary of byte strings."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rwkv_engine.checks import require_text
from rwkv_engine.errors import TokenizerError
from rwkv_engine.text.byte_trie import Encode, byte_trie
from rwkv_engine.text.ids import checked_ids
from rwkv_engine.text.tokenizer import END_OF_TEXT, require_bytes

_BYTE_ESCAPE = r"""\\(?:[\\'"nrt]|x[0-9a-f]{2})"""
_TEXT_ESCAPE = rf"(?:{_BYTE_ESCAPE}|\\u[0-9a-f]{{4}}|\\U[0-9a-f]{{8}})"


def _quoted(escape: str) -> str:
    return rf"""(?:'(?:[^'\\]|{escape})*'|"(?:[^"\\]|{escape})*")"""


# An id, one str or bytes literal as Python's repr writes it, and a length. Only such literals are passed to
# ast.literal_eval, which executes no code in any case.
_LINE = re.compile(rf"([0-9]{{1,9}}) (b{_quoted(_BYTE_ESCAPE)}|{_quoted(_TEXT_ESCAPE)}) ([0-9]{{1,9}})")


class WorldTokenizer:
    """A vocabulary file with lines `id 'repr' length`. The file is parsed and never executed.

    Id 0 ends a text, and no line may have it. Text cannot hold special tokens: `<|endoftext|>` in a text is encoded as
    its characters.

    Raises:
        TokenizerError: the file cannot be read, a line is malformed, or a byte is not a token.
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
        self.special_tokens: Mapping[str, int] = {END_OF_TEXT: 0}

    @functools.cached_property
    def _encode(self) -> Encode:
        return byte_trie(self._tokens)  # built on first use: inspecting a model compiles nothing

    def encode(self, text: str) -> list[int]:
        """The token ids of a text; errors as for `Tokenizer.encode`."""
        return self._encode(require_text("text", text))

    def encode_bytes(self, data: bytes) -> list[int]:
        """The token ids of any bytes."""
        return self._encode(require_bytes(data))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, see `Tokenizer.token_bytes`; empty for the end of text and for a gap between ids."""
        [token] = checked_ids([token], self.n_vocab)
        return self._tokens.get(token, b"")

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, see `Tokenizer.decode`."""
        ids = checked_ids(tokens, self.n_vocab)
        return b"".join(self._tokens.get(token, b"") for token in ids).decode(errors="replace")


def _parse(name: str, text: str) -> dict[int, bytes]:
    """The bytes of each id, in ascending order of the ids, which is the order of the lines."""
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
            f"{where}: expected `id 'text' length`, got {shown!r}; it is not a World vocabulary, or it is damaged"
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
