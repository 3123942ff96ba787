"""The secret keys that states are sealed with."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from rwkv_engine.errors import RequestError

KEY_BYTES, NAME_BYTES = 32, 8


class SealingKeys:
    """Secret keys, of which the first seals and all of them open.

    To replace a key, put a new one before it, and remove the old one when the states that it has sealed have expired.
    """

    def __init__(self, keys: Sequence[bytes]):
        """Takes keys of 32 random bytes each.

        Raises:
            RequestError: there is none, or one has another length.
        """
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            lengths = ", ".join(str(len(key)) for key in keys) or "none"
            raise RequestError(f"keys: got {lengths} bytes, expected at least one key of {KEY_BYTES} random bytes")
        self._keys = {key_name(key): key for key in keys}
        self.sealing = next(iter(self._keys.items()))

    @classmethod
    def read(cls, path: Path) -> SealingKeys:
        """Reads keys from a file, one on each line in Base64; empty lines and those that begin with # are ignored.

        Raises:
            RequestError: the file cannot be read, or a line is not such a key.
        """
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise RequestError(f"{path}: keys of states cannot be read from this file: {reason}") from error
        keys = []
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            try:
                keys.append(base64.b64decode(line, validate=True))
            except binascii.Error:
                keys.append(b"")
            if len(keys[-1]) != KEY_BYTES:  # without the line, which is a secret
                raise RequestError(
                    f"{path}: line {number} is not a key, expected {KEY_BYTES} random bytes in Base64, as"
                    f" `openssl rand -base64 {KEY_BYTES}` prints them"
                )
        if not keys:
            raise RequestError(f"{path}: there is no key, expected one on each line")
        return cls(keys)

    def get(self, name: bytes) -> bytes | None:
        """The key of that name, if there is one."""
        return self._keys.get(name)


def key_name(key: bytes) -> bytes:
    """What stands for a key in what it has sealed."""
    return sha256(b"rwkv_engine name of a key" + key).digest()[:NAME_BYTES]
