"""Files and directories that are written completely or not at all.

New content is built next to its destination and renamed into place, so a reader sees the old content or the new one,
never a part, even if this process is killed. Only regular files and directories are ever replaced: a device node, a
named pipe or a socket at the destination is refused. A symbolic link stays, and what it points to is replaced.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # arguments of Linux's renameat2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # an old kernel, or a file system that cannot exchange
_asking = threading.Lock()  # the mask of the process is read by setting it: two threads at a time could lose it
_YOUNG = 60  # seconds; a folder younger than this may not be locked yet


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to the file `path`; renames it to `path` if the block ends without an error.

    A file that was there keeps its permissions.

    Raises:
        OSError: `path` is not a regular file (see `file_problem`), or nothing can be written there.
    """
    mode = _mode_of_file(path)
    target = Path(os.path.realpath(path))  # of a symbolic link the target is replaced, and the link stays
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        temporary = Path(folder) / target.name
        yield temporary
        temporary.chmod(mode)  # some writers make files that only their owner can read
        _mode_of_file(path)  # checks again, because something else may be there now
        os.replace(temporary, target)


def file_problem(path: Path) -> str | None:
    """Why `replace_atomically` would refuse `path`, for a check before a long computation; None if it would not."""
    try:
        _mode_of_file(path)
    except OSError as error:
        return error.strerror
    return None


def _mode_of_file(path: Path) -> int:
    """The permissions of the regular file at `path`, or those that a new file would get."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        folder = (Path(os.path.realpath(path)) if path.is_symlink() else path).parent
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {folder}", str(path)) from None
        with _asking:
            mask = os.umask(0)
            os.umask(mask)
        return 0o666 & ~mask
    _check_regular(path, mode)
    return stat.S_IMODE(mode)


def _check_regular(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((words for has_kind, words in _KINDS if has_kind(mode)), "a special file")
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, f"is {kind}, not a regular file; nothing was written", str(path))


@contextmanager
def replace_directory_atomically(path: Path, is_replaced: Callable[[str], bool]) -> Iterator[Path]:
    """Yields an empty directory next to `path`; puts it in the place of `path` if the block ends without an error.

    If this process is killed, the unfinished directory stays next to `path` under a name that begins with a dot, until
    the next call removes it. Old files that the block did not write again, and that `is_replaced` does not name, are
    kept: they are hard-linked into the new directory (copied where links are impossible), so they never go missing.

    Args:
        path: a directory, or nothing yet; missing parents are made, and removed again if the block fails.
        is_replaced: says for a name in the old directory whether it is removed even if no new file has that name.

    Raises:
        OSError: nothing can be written there; `path` is a file; or a device, pipe, socket or directory has the name of
            a file to be replaced.
    """
    path = Path(os.path.realpath(path))  # of a symbolic link the target is replaced, and the link stays
    made = [folder for folder in path.parents if not folder.exists()]
    for there in (path, path.parents[len(made)]):
        if there.exists() and not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _workplace(path) as temporary:
            new = temporary / path.name
            new.mkdir()
            yield new
            _sync_files(new)
            if path.exists():
                _keep_old(path, new, is_replaced)
                shutil.copymode(path, new)
                _sync_names(new)
                _exchange(new, path)
            else:
                _sync_names(new)
                os.rename(new, path)
            # The old directory is removed only after this; otherwise a power failure could lose both.
            _sync_names(path.parent)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _keep_old(old: Path, new: Path, is_replaced: Callable[[str], bool]) -> None:
    for entry in os.scandir(old):
        target = new / entry.name
        if is_replaced(entry.name) or os.path.lexists(target):
            if not entry.is_symlink():
                _check_regular(entry.path, entry.stat().st_mode)
        elif entry.is_dir(follow_symlinks=False):
            target.mkdir()
            _keep_old(Path(entry.path), target, lambda name: False)
            shutil.copystat(entry.path, target)
        else:
            try:
                os.link(entry.path, target, follow_symlinks=False)
            except OSError:  # the file system has no links, or the file belongs to another user
                shutil.copy2(entry.path, target, follow_symlinks=False)


def _sync_files(folder: Path) -> None:
    """Waits until the files' content is on the disk; some file systems report only here that they are full.

    This protects against a power failure, after which the new directory could exist without its content.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    with suppress(OSError):  # not every system can sync a directory
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(new: Path, path: Path) -> None:
    """Swaps two directories in one step, so `path` exists at every moment.

    Where the system cannot do that (systems other than Linux, some network file systems), these are two renames. If the
    process is killed between them, there is nothing at `path`, and the complete old directory is next to `new` as
    `NAME.old`.

    Raises:
        OSError: neither works; both directories are unchanged.
    """
    if _renameat2 is not None:
        if _renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) == 0:
            return
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number), str(path))
    aside = new.with_name(f"{new.name}.old")
    os.rename(path, aside)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(aside, path)
        raise


_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
if _renameat2 is not None:
    _renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """Yields an empty folder next to `path` and removes it at the end; also removes those of killed processes.

    A process holds a lock on its folder, which the system releases when the process ends. Locked folders are kept.

    Raises:
        OSError: no folder can be created there.
    """
    prefix = f".{path.name}.unfinished-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):
            only_copy = not path.exists() and (left / f"{path.name}.old").exists()  # see `_exchange`
            if time.time() - left.stat().st_mtime > _YOUNG and not only_copy:
                os.close(_locked(left))
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix))
    lock = None
    try:
        with suppress(OSError):  # not every file system has locks
            lock = _locked(folder)
        yield folder
    finally:
        # Files of the old directory may resist removal. By then the new directory is in its place.
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
