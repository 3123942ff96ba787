"""Seals snapshots: encrypted and authenticated, for one model, vocabulary and owner, until a time.

A sealed snapshot is a header of fixed size and an AES-256-GCM ciphertext. The header has the version, the name of the
key, 32 random bytes, the time of expiry, and a hash that stands for model and vocabulary. The header and the owner are
the associated data of the encryption. Each ciphertext has a key of its own, derived (HKDF) from the secret key and the
random bytes, so that any number of them may be sealed with one secret key.

Encryption is needed because a state tells a lot of what was read. Before the ciphertext is proven, nothing of it is
decompressed, and of the header nothing but sizes and the name of a key is looked at.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rwkv_engine.checks import require_text
from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.errors import RequestError
from rwkv_engine.portable.content import Contents
from rwkv_engine.portable.keys import KEY_BYTES, SealingKeys
from rwkv_engine.text import Tokenizer

MAGIC, VERSION = b"RWKS", 1
_HEADER = struct.Struct("<4sB8s32sQ32s")  # magic, version, name of the key, random bytes, expiry, model and vocabulary
_TAG_BYTES = 16
_NONCE = bytes(12)  # a key is used once
DAY = 24 * 60 * 60


class StateRefused(RequestError):
    """A sealed state is not accepted.

    Attributes:
        code: "state_invalid", "state_too_large", "state_expired" or "state_of_another_model".
    """

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


class Sealer:
    """Seals and opens the snapshots of one model. It may be used by several threads.

    Attributes:
        most_bytes: the largest size of a sealed snapshot.
    """

    def __init__(
        self,
        keys: SealingKeys,
        config: ModelConfig,
        fingerprint: str,
        tokenizer: Tokenizer,
        seconds: float = 30 * DAY,
        clock: Callable[[], float] = time.time,
    ):
        """Binds keys to a model.

        Args:
            keys: the first of them seals, and all of them open.
            config: the model's.
            fingerprint: the model's.
            tokenizer: the model's.
            seconds: how long what is sealed can be opened.
            clock: tells the time in seconds since 1970.
        """
        self._keys, self._seconds, self._clock = keys, seconds, clock
        self._contents = Contents(config, fingerprint)
        self._config, self._fingerprint = config, fingerprint
        self._model = _identity(config, fingerprint, tokenizer)
        self.most_bytes = _HEADER.size + self._contents.most_bytes + _TAG_BYTES

    def seal(self, snapshot: Snapshot, owner: str = "", dtype: str = "float32") -> bytes:
        """Seals a snapshot.

        Args:
            snapshot: of the model.
            owner: who may open it.
            dtype: "float32", or "float16" for half the size at the cost of rounding.

        Raises:
            RequestError: it is the snapshot of another model, or a value is out of range.
        """
        snapshot.state.check(self._config, self._fingerprint, batch=1)
        name, key = self._keys.sealing
        expiry = int(self._clock() + self._seconds)
        salt = os.urandom(32)
        header = _HEADER.pack(MAGIC, VERSION, name, salt, expiry, self._model)
        content = self._contents.pack(snapshot, dtype)
        return header + _cipher(key, salt).encrypt(_NONCE, content, _associated(header, owner))

    def open(self, blob: bytes, owner: str = "") -> Snapshot:
        """Opens what `seal` has made, here or on another machine that has the key.

        Raises:
            StateRefused: it is damaged, another owner's, sealed with an unknown key, of another model, or has expired.
        """
        if len(blob) > self.most_bytes:
            raise StateRefused(
                f"state: got {len(blob)} bytes, expected at most {self.most_bytes}, the largest of this model",
                "state_too_large",
            )
        invalid = StateRefused("state: was not sealed for this client by this server, or is damaged", "state_invalid")
        if len(blob) < _HEADER.size + _TAG_BYTES:
            raise invalid
        header = blob[: _HEADER.size]
        magic, version, name, salt, expiry, model = _HEADER.unpack(header)
        key = self._keys.get(name)
        if magic != MAGIC or version != VERSION or key is None:
            raise invalid
        try:
            content = _cipher(key, salt).decrypt(_NONCE, blob[_HEADER.size :], _associated(header, owner))
        except InvalidTag:
            raise invalid from None
        # From here on it is known to be a state of this client, which may be told what is wrong with it.
        if model != self._model:
            raise StateRefused(
                "state: belongs to another model or vocabulary; send the whole text instead", "state_of_another_model"
            )
        if self._clock() > expiry:
            raise StateRefused("state: has expired; send the whole text instead", "state_expired")
        try:
            return self._contents.unpack(content)
        except ValueError:
            raise invalid from None


def in_base64(n_bytes: int) -> int:
    """The number of characters that so many bytes take."""
    return 4 * -(-n_bytes // 3)


def _associated(header: bytes, owner: str) -> bytes:
    return header + require_text("owner", owner)


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, b"rwkv_engine sealed state 1").derive(key))


def _identity(config: ModelConfig, fingerprint: str, tokenizer: Tokenizer) -> bytes:
    """Stands for weights, sizes and vocabulary."""
    special = sorted(tokenizer.special_tokens.items())
    facts = repr((config.identity(), fingerprint, tokenizer.n_vocab, tokenizer.end_of_text, special))
    digest = sha256(facts.encode("utf-8", "surrogatepass"))
    for token in range(tokenizer.n_vocab):
        data = tokenizer.token_bytes(token)
        digest.update(len(data).to_bytes(4, "little") + data)
    return digest.digest()
