"""Files and directories that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rwkv_engine.storage.exchange import exchange
from rwkv_engine.storage.workplace import workplace


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yields a path in a temporary folder beside `path`; renames it to `path` if the block ends well."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # some writers make files only their owner can read
        os.replace(temporary, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def replace_directory_atomically(path: Path, is_replaced: Callable[[str], bool]) -> Iterator[Path]:
    """Yields an empty directory beside `path`; puts it in the place of `path` if the block ends well.

    Whoever looks finds the old directory or the new one, each whole, even if this process is killed at any moment. What
    it had begun then stays beside `path` under a name that begins with a dot, until the next call removes it. What the
    block does not write and `is_replaced` does not claim is taken over from the old directory, as hard links (copies,
    where there can be none), so it costs nothing and is at no time missing from `path`.

    Args:
        path: a directory, or nothing yet; folders above it are made, and removed again if the block fails.
        is_replaced: tells of a name in the old directory whether it vanishes even if nothing new has that name.

    Raises:
        OSError: it cannot be written there, or `path` is a file.
    """
    path = Path(os.path.realpath(path))  # not a link to the directory is replaced, but the directory
    made = [folder for folder in path.parents if not folder.exists()]
    for there in (path, path.parents[len(made)]):
        if there.exists() and not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with workplace(path) as temporary:
            new = temporary / path.name
            new.mkdir()
            yield new
            _on_disk(new)
            if path.exists():
                _take_over(path, new, is_replaced)
                shutil.copymode(path, new)
                _names_on_disk(new)
                exchange(new, path)
            else:
                _names_on_disk(new)
                os.rename(new, path)
            # Before the old directory is removed below, or a machine that fails then might have neither.
            _names_on_disk(path.parent)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _take_over(old: Path, new: Path, is_replaced: Callable[[str], bool]) -> None:
    for entry in os.scandir(old):
        target = new / entry.name
        if is_replaced(entry.name) or os.path.lexists(target):
            continue
        if entry.is_dir(follow_symlinks=False):
            target.mkdir()
            _take_over(Path(entry.path), target, lambda name: False)
            shutil.copystat(entry.path, target)
            continue
        try:
            os.link(entry.path, target, follow_symlinks=False)
        except OSError:  # a file system without, or another user's file
            shutil.copy2(entry.path, target, follow_symlinks=False)


def _on_disk(folder: Path) -> None:
    """Waits until files are written: some file systems tell only here that they are full.

    A killed process needs none of this, but a machine that loses power may otherwise know the new directory by name and
    nothing of what is in it, when the old one is gone.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _names_on_disk(folder: Path) -> None:
    with suppress(OSError):  # not every system can do so with a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
