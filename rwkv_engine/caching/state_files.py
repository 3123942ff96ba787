"""The files of a state cache: states that outlive the process, in a folder of limited size.

A file is a saved state (`State.save`), written completely or not at all, so a process may be killed at any moment. Its
name is that of one prefix of one owner under one model, and the file repeats the name and holds the SHA-256 of its
numbers, so that a file that was damaged, renamed or copied from elsewhere is not taken for another. Names are hashes: a
prompt cannot be read from the folder, but whoever can read the states knows what they say of it, so a new folder is
readable by its owner alone.

Several processes may share a folder: each notices by the folder's time of change what others have added, and before it
adds a file removes those that were used least recently, of whatever model, until all are within its limit.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.notices import log

_NAME = re.compile(r"[0-9a-f]{16}-(\d+)-[0-9a-f]{32}\.safetensors")
_UNFINISHED = re.compile(rf"\.{_NAME.pattern}\..+")  # the temporary folder of `replace_atomically`
_YOUNG = 60  # seconds; an unfinished file older than this belongs to a process that was killed


class StateFiles:
    """The states of one model in a folder, which may hold those of others too.

    Only one thread at a time may use it. No method raises an error because of the disk or of what it finds there: a
    file that cannot be written is a notice, and one that cannot be used is a notice and is removed.

    Attributes:
        pinned: names of files that this process does not remove to make room.
        n_bytes: the size of all files of the folder, when they were last counted.
        evictions: the number of files that were removed to make room.
    """

    def __init__(self, folder: Path, identity: str, limit: int):
        """Opens a folder, and makes it if there is none.

        Args:
            folder: the folder.
            identity: 16 hexadecimal digits that stand for everything that decides the bits of a state.
            limit: the size of all files together, in bytes.

        Raises:
            RequestError: it cannot be made or read.
        """
        self.pinned: set[str] = set()
        self.n_bytes = self.evictions = 0
        self._folder, self._identity, self._limit = folder, identity, limit
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by name, least recently used first
        self._seen = 0  # when the folder was last changed by this process, or looked at
        self._is_failing = False  # whether the last state could not be written, which is said once
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._look()
        except OSError as error:
            raise RequestError(
                f"{folder}: cannot be the folder of a state cache: {error.strerror or error}; name one that this"
                " program may write to"
            ) from error

    @property
    def n_states(self) -> int:
        """The number of states of this model."""
        return sum(name.startswith(self._identity) for name in self._sizes)

    def names(self, owner: str, tokens: Sequence[int], lengths: Sequence[int]) -> dict[int, str]:
        """The names of prefixes.

        Args:
            owner: whose they are.
            tokens: a text.
            lengths: the numbers of its tokens that are prefixes, in ascending order.
        """
        data, names, begin = array("i", tokens), {}, 0
        digest = hashlib.sha256(f"{self._identity} {len(owner)} {owner}".encode("utf-8", "surrogatepass"))
        for end in lengths:
            digest.update(data[begin:end].tobytes())
            names[end] = f"{self._identity}-{end}-{digest.hexdigest()[:32]}.safetensors"
            begin = end
        return names

    def name(self, owner: str, prefix: Sequence[int]) -> str:
        """The name of one prefix."""
        return self.names(owner, prefix, [len(prefix)])[len(prefix)]

    def longest(self, owner: str, tokens: Sequence[int], more_than: int) -> State | None:
        """The state after the longest prefix of a text that has a file, if it has more than so many tokens."""
        with suppress(OSError):
            self._look_if_changed()
        lengths = {_length(name) for name in self._sizes if name.startswith(self._identity)}
        names = self.names(owner, tokens, sorted(n for n in lengths if more_than < n <= len(tokens)))
        for n, name in reversed(names.items()):
            if name in self._sizes and (state := self._read(name, n)):
                return state
        return None

    def add(self, name: str, state: State) -> None:
        """Writes the state of a prefix, and makes room for it."""
        if name in self._sizes:
            return self.touch(name)
        try:
            self._make_room(_size(state))
            path = self._folder / name
            state.save(path, {"name": name, "sha256": _checksum(state)})
            self._sizes[name] = path.stat().st_size
            self.n_bytes += self._sizes[name]
            self._seen = self._folder.stat().st_mtime_ns
            self._is_failing = False
        except (OSError, RequestError) as error:
            if not self._is_failing:
                log.warning(f"state cache: states are kept in memory only, until they can be written again: {error}")
            self._is_failing = True

    def touch(self, name: str) -> None:
        """Notes that a state was used."""
        if name in self._sizes:
            self._sizes.move_to_end(name)
            with suppress(OSError):
                os.utime(self._folder / name)

    def clear(self) -> None:
        """Removes all files of this model."""
        with suppress(OSError):
            self._look()
        for name in [name for name in self._sizes if name.startswith(self._identity)]:
            self._remove(name)

    def identify(self, identity: str) -> None:
        """Tells the identity of the model, see `StateFiles`. If it is another one, no file is pinned any more."""
        if identity != self._identity:
            self._identity = identity
            self.pinned.clear()

    def _read(self, name: str, n: int) -> State | None:
        path = self._folder / name
        if not path.exists():  # another process has removed it
            self._forget(name)
            return None
        try:
            about, state = State.about(path), State.load(path)
            if (about.get("name"), about.get("sha256")) != (name, _checksum(state)) or state.position.tolist() != [n]:
                raise RequestError(f"{path}: is damaged, or was written under another name")
        except (RequestError, RuntimeError, ValueError, KeyError) as error:
            log.warning(f"state cache: a file is removed, and its prompt read again: {error}")
            self._remove(name)
            return None
        self.touch(name)
        return state

    def _make_room(self, n_bytes: int) -> None:
        """Removes files until so many bytes fit.

        Raises:
            OSError: the folder cannot be read.
            RequestError: they do not fit, because what is there is pinned.
        """
        self._look_if_changed()
        removable = [name for name in self._sizes if name not in self.pinned]
        while self.n_bytes + n_bytes > self._limit and removable:
            self._remove(removable.pop(0))
            self.evictions += 1
        if self.n_bytes + n_bytes > self._limit:
            raise RequestError(f"{self._folder}: the limit of {self._limit} bytes has no room for another state")

    def _look_if_changed(self) -> None:
        if self._folder.stat().st_mtime_ns != self._seen:
            self._look()

    def _look(self) -> None:
        """Finds the files of all processes, and removes what killed ones have left."""
        found, self._seen = [], self._folder.stat().st_mtime_ns
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):  # it may have been removed since
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        found.append((entry.stat().st_mtime_ns, entry.name, entry.stat().st_size))
                    elif _UNFINISHED.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _YOUNG:
                        shutil.rmtree(entry.path, ignore_errors=True)
        self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
        self.n_bytes = sum(self._sizes.values())

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)
            self._forget(name)

    def _forget(self, name: str) -> None:
        self.n_bytes -= self._sizes.pop(name, 0)


def _length(name: str) -> int:
    return int(name.split("-")[1])


def _size(state: State) -> int:
    """The size of the file of a state, at most: its numbers, and names and checksums before them."""
    return sum(field.nbytes for field in state.fields.values()) + 4096


def _checksum(state: State) -> str:
    digest = hashlib.sha256(repr(state.fingerprint).encode())
    for name, tensor in sorted({**state.fields, "position": state.position}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
