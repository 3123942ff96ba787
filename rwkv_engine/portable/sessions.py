"""Named states in files, for clients that leave theirs with the server.

A session is a sealed state in a file of its own, which is replaced as a whole: after a crash at any moment it is the
state before or after, and a damaged file is refused, because it is not authentic. The name of the session is a part of
the owner that it is sealed for, so that no file passes for another one.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from rwkv_engine.checks import require_text, shown
from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.errors import RequestError
from rwkv_engine.portable.sealer import Sealer
from rwkv_engine.storage.atomic import replace_atomically

NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_SUFFIX = ".state"


class SessionError(RequestError):
    """A session cannot be used.

    Attributes:
        code: "session_busy", "session_limit_exceeded" or "session_not_found".
    """

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class SessionInfo:
    """What is known of a session.

    Attributes:
        name: its name.
        n_bytes: the size of its file.
        updated: when it was saved, in seconds since 1970.
    """

    name: str
    n_bytes: int
    updated: float


class Session:
    """A session in use, by one user at a time.

    Attributes:
        name: its name.
        snapshot: where its text has ended; None if it is new.
    """

    def __init__(self, name: str, snapshot: Snapshot | None, save: Callable[[Snapshot], None]):
        self.name = name
        self.snapshot = snapshot
        self._save = save
        self._lock = threading.Lock()
        self._is_over = False

    def save(self, snapshot: Snapshot) -> None:
        """Makes this its state, which is on the disk when the call returns.

        Raises:
            OSError: it cannot be written; it stays as it was.
            RequestError: the session is no longer in use.
        """
        with self._lock:
            if self._is_over:
                raise RequestError(f"session: {self.name} is no longer in use; save it in the block that uses it")
            self._save(snapshot)

    def end(self) -> None:
        """Waits for a save in another thread, and refuses further ones."""
        with self._lock:
            self._is_over = True


class Sessions:
    """The sessions of all owners in a folder, which one process uses at a time. Methods may be called in any thread."""

    def __init__(
        self,
        folder: Path,
        sealer: Sealer,
        seconds: float,
        most: int = 1000,
        most_bytes: int = 10 * 2**30,
        clock: Callable[[], float] = time.time,
    ):
        """Opens a folder, makes it if there is none, and removes what a killed process has left unfinished.

        Args:
            folder: the folder, which only its owner can read.
            sealer: seals the states.
            seconds: how long a session is kept after it was used last.
            most: the largest number of sessions of an owner.
            most_bytes: the size of all sessions together at which no further ones are begun.
            clock: tells the time in seconds since 1970.

        Raises:
            RequestError: it cannot be used, or another process uses it.
        """
        self._folder, self._sealer, self._clock = folder, sealer, clock
        self._seconds, self._most, self._most_bytes = seconds, most, most_bytes
        self._lock = threading.Lock()  # of what follows
        self._busy: set[Path] = set()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held = os.open(folder, os.O_RDONLY)
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for unfinished in folder.glob("*/.*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        except BlockingIOError as error:
            os.close(self._held)
            raise RequestError(f"{folder}: another process keeps its sessions here; name another folder") from error
        except OSError as error:
            raise RequestError(f"{folder}: cannot be the folder of sessions: {error.strerror or error}") from error

    def close(self) -> None:
        """Lets another process use the folder."""
        os.close(self._held)

    @contextmanager
    def use(self, name: str, owner: str = "") -> Iterator[Session]:
        """A session, for as long as the block runs; it is new if there is none of that name.

        Raises:
            RequestError: the name has other characters, or is too long.
            SessionError: the session is in use, or there is no room for another one.
            StateRefused: its file is damaged, or the model or the keys are others now.
        """
        path = self._path(name, owner)
        with self._lock:
            if path in self._busy:
                raise SessionError(f"session: {name} is in use by another request; wait for it", "session_busy")
            self._expire(path)
            if not path.exists():
                self._require_room(path)
            self._busy.add(path)
        session = None
        try:
            sealed_for = f"{owner} session {name}"
            snapshot = self._sealer.open(path.read_bytes(), sealed_for) if path.exists() else None
            session = Session(name, snapshot, lambda snapshot: self._write(path, snapshot, sealed_for))
            yield session
        finally:
            if session:
                session.end()
            with self._lock:
                self._busy.discard(path)

    def all(self, owner: str = "") -> list[SessionInfo]:
        """The sessions of an owner, by name."""
        found = []
        with self._lock:  # so that no session is begun between a look at its age and its removal
            for path in self._place(owner).glob(f"*{_SUFFIX}"):
                with suppress(FileNotFoundError):  # it has expired
                    self._expire(path)
                    status = path.stat()
                    found.append(SessionInfo(bytes.fromhex(path.stem).decode(), status.st_size, status.st_mtime))
        return sorted(found, key=lambda info: info.name)

    def delete(self, name: str, owner: str = "") -> None:
        """Removes a session.

        Raises:
            RequestError: the name has other characters, or is too long.
            SessionError: there is none of that name, or it is in use.
        """
        path = self._path(name, owner)
        with self._lock:
            self._expire(path)
            if path in self._busy:
                raise SessionError(f"session: {name} is in use by a request; wait for it", "session_busy")
            if not path.exists():
                raise SessionError(f"session: there is none of the name {name}", "session_not_found")
            path.unlink()

    def _place(self, owner: str) -> Path:
        return self._folder / sha256(require_text("owner", owner)).hexdigest()[:32]

    def _path(self, name: str, owner: str) -> Path:
        if not re.fullmatch(NAME, name):
            raise RequestError(
                f"session: got {shown(name)}, expected up to 64 letters, digits, dots, hyphens or underscores, a letter"
                " or a digit first"
            )
        return self._place(owner) / f"{name.encode().hex()}{_SUFFIX}"  # not the name: not all disks tell a from A

    def _expire(self, path: Path) -> None:
        """Removes a session that was not used for too long."""
        if path not in self._busy and path.exists() and path.stat().st_mtime + self._seconds < self._clock():
            path.unlink(missing_ok=True)

    def _require_room(self, path: Path) -> None:
        """Checks that another session may be begun; those that are in use may not have a file yet.

        Sessions that have expired are removed before, whoever began them: clients that are gone do not ask for theirs.
        """
        for other in self._folder.glob(f"*/*{_SUFFIX}"):
            self._expire(other)
        paths = {*self._folder.glob(f"*/*{_SUFFIX}"), *self._busy}
        own = [other for other in paths if other.parent == path.parent]
        if len(own) >= self._most:
            raise SessionError(
                f"session: there are {len(own)}, expected at most {self._most}; delete some", "session_limit_exceeded"
            )
        n_bytes = sum(other.stat().st_size if other.exists() else self._sealer.most_bytes for other in paths)
        if n_bytes + self._sealer.most_bytes > self._most_bytes:
            raise SessionError("session: there is no room for another one; delete some", "session_limit_exceeded")

    def _write(self, path: Path, snapshot: Snapshot, sealed_for: str) -> None:
        blob = self._sealer.seal(snapshot, sealed_for)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with replace_atomically(path) as temporary, open(temporary, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())  # so that a power failure does not leave a name without content
