"""The folder for just-in-time builds: `$XDG_CACHE_HOME/rwkv_engine`, by default `~/.cache/rwkv_engine`.

If it is not writable, a private folder in the system's directory for temporary files is used.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rwkv_engine.errors import ExtensionError
from rwkv_engine.notices import log

ADVICE = (
    "set XDG_CACHE_HOME to a folder that can be written, or build when installing (pip install --no-build-isolation)"
)
STALE_SECONDS = 3600  # a build folder without a lock file is from an earlier release; no build takes this long


def cache_folder() -> Path:
    """The folder for just-in-time builds, which may not exist yet."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkv_engine"
    except RuntimeError:  # neither HOME nor the system names a home
        return _temporary_folder()


def writable_folder() -> Path:
    """The cache folder, created if absent; if it is not writable, a private temporary folder, with a notice.

    Raises:
        ExtensionError: neither folder is writable.
    """
    folder, instead = cache_folder(), _temporary_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        problem = f"cannot write to {folder} ({error.strerror})"
    with suppress(OSError):
        instead.mkdir(mode=0o700)
    if not _is_private(instead) or not os.access(instead, os.W_OK):
        raise ExtensionError(f"{problem} nor to {instead}; {ADVICE}")
    log.warning(f"{problem}, so compiled kernels are kept in {instead}; {ADVICE}")
    return instead


def kept(pattern: str) -> list[Path]:
    """The files of earlier builds that match `pattern`, newest first."""
    folders = {cache_folder(), *(folder for folder in [_temporary_folder()] if _is_private(folder))}
    found: list[tuple[float, Path]] = []
    for folder in folders:
        with suppress(OSError):
            found += [(path.stat().st_mtime, path) for path in folder.glob(pattern)]
    return [path for _, path in sorted(found, reverse=True)]


@contextmanager
def locked(library: Path) -> Iterator[None]:
    """Holds the lock of one library while it is built. The system releases it when the process dies."""
    import fcntl  # Unix only, like the build of the kernels

    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_folder(library: Path) -> Path:
    """The folder in which a library is built, by the process that holds its lock."""
    return library.with_name(f"build_{library.stem}")


def remove_abandoned_builds(folder: Path) -> None:
    """Deletes the folders of builds that were killed, whose locks no process holds."""
    import fcntl

    for abandoned in folder.glob("build_*"):
        lock = abandoned.with_name(f"{abandoned.name.removeprefix('build_')}.lock")
        with suppress(OSError):  # another process holds the lock, or has removed the folder
            if lock.exists():
                with open(lock, "w") as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(abandoned)
            elif time.time() - abandoned.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(abandoned)


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir(), f"rwkv_engine-{os.getuid() if hasattr(os, 'getuid') else 'user'}")


def _is_private(folder: Path) -> bool:
    """Whether only this user can have written to a folder; libraries are loaded from it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
