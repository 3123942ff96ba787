"""API keys, without one of which a server that has some serves nothing."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from rwkv_engine.errors import RequestError


class Keys:
    """A set of keys, which are kept as hashes only."""

    def __init__(self, keys: Iterable[str]):
        """Remembers keys.

        Raises:
            RequestError: there is none.
        """
        self._hashes = [sha256(key.encode()).digest() for key in keys]
        if not self._hashes:
            raise RequestError("there is no API key, expected at least one")

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Reads keys from a UTF-8 file, one on each line; empty lines and those that begin with # are ignored.

        Raises:
            RequestError: the file cannot be read, or has no key.
        """
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise RequestError(f"{path}: API keys cannot be read from this file: {reason}") from error
        try:
            return cls(line for line in lines if line and not line.startswith("#"))
        except RequestError as error:
            raise RequestError(f"{path}: {error}, one on each line") from error

    @staticmethod
    def owner(authorization: bytes) -> str:
        """Stands for whoever gave an accepted Authorization header, where their states are kept; it is not the key."""
        key = authorization.partition(b" ")[2].strip()
        return sha256(b"owner " + sha256(key).digest()).hexdigest()[:32]

    def accept(self, authorization: bytes) -> bool:
        """Whether the value of an Authorization header is `Bearer KEY` with one of the keys.

        The time that this takes does not depend on the keys, so that it tells nothing about them.
        """
        scheme, _, key = authorization.partition(b" ")
        given = sha256(key.strip()).digest()
        matches = [compare_digest(given, known) for known in self._hashes]  # all of them, not only until one matches
        return scheme.lower() == b"bearer" and any(matches)
