"""API keys, without one of which a server that has some serves nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from rwkv_engine.errors import RequestError
from rwkv_engine.server.clients import Client

# What may follow a key in its line.
_OPTIONS = {"name": "[A-Za-z0-9._@-]{1,64}", "texts": "[1-9][0-9]{0,8}", "tokens-per-minute": "[1-9][0-9]{0,8}"}


class Keys:
    """The clients of a server by their keys, which are kept as hashes only."""

    def __init__(self, lines: Iterable[str], source: str = "keys"):
        """Reads lines `KEY [name=NAME] [texts=N] [tokens-per-minute=N]`, see `Client`; `source` is for messages.

        Raises:
            RequestError: there is none, or something else follows a key.
        """
        self._path: Path | None = None
        self._clients = _clients(lines, source)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Reads keys from a UTF-8 file with such lines; empty ones and those that begin with # are ignored.

        Raises:
            RequestError: the file cannot be read, has no key, or something else follows a key.
        """
        keys = cls(_lines(path), str(path))
        keys._path = path
        return keys

    @staticmethod
    def owner(authorization: bytes) -> str:
        """Stands for whoever gave an accepted Authorization header, where their states are kept; it is not the key."""
        key = authorization.partition(b" ")[2].strip()
        return sha256(b"owner " + sha256(key).digest()).hexdigest()[:32]

    def reload(self) -> None:
        """Reads the file again, for further requests. Keys that it still has go on with what they have used.

        Raises:
            RequestError: as for `read`; then the keys stay as they were.
        """
        if self._path:
            found = _clients(_lines(self._path), str(self._path))
            for key, client in found.items():
                if known := self._clients.get(key):
                    known.limit_as(client)
                    found[key] = known
            self._clients = found

    def accept(self, authorization: bytes) -> Client | None:
        """The client whose key an Authorization header `Bearer KEY` has; None if it has none of the keys.

        The time that this takes does not depend on the keys, so that it tells nothing about them.
        """
        scheme, _, key = authorization.partition(b" ")
        given = sha256(key.strip()).digest()
        # All of them, not only until one matches.
        matches = [client for known, client in self._clients.items() if compare_digest(given, known)]
        return matches[0] if matches and scheme.lower() == b"bearer" else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        advice = "give a file with one key on each line"
        raise RequestError(f"{path}: API keys cannot be read from this file: {reason}; {advice}") from error


def _clients(lines: Iterable[str], source: str) -> dict[bytes, Client]:
    """The clients by the hashes of their keys. No message has a part of a line, which may be one of a key."""
    found: dict[bytes, Client] = {}
    for number, line in enumerate(lines, start=1):
        key, *options = line.split() or ["#"]
        if key.startswith("#"):
            continue
        given = dict[str, str]()
        for option in options:
            name, _, value = option.partition("=")
            if name not in _OPTIONS or name in given or not re.fullmatch(_OPTIONS[name], value):
                expected = "name=NAME, texts=N and tokens-per-minute=N, each at most once, N at least 1"
                raise RequestError(f"{source}: line {number}: after the key, expected only {expected}")
            given[name] = value
        hashed = sha256(key.encode()).digest()
        if hashed in found:
            raise RequestError(f"{source}: line {number}: this key was in an earlier line; leave one of them out")
        texts, tokens = (int(given[name]) if name in given else None for name in ("texts", "tokens-per-minute"))
        found[hashed] = Client(given.get("name", f"key-{number}"), texts, tokens)
    if not found:
        raise RequestError(f"{source}: there is no API key, expected at least one, one on each line")
    return found
