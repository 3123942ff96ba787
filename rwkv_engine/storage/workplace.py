"""A folder to build something in, beside the place where it will be."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_YOUNG = 60  # seconds: may have been made just now, and not be locked yet


@contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, which is removed in the end; removes those of processes that were killed.

    A process holds a lock on its folder, which ends with it however it ends, so what is locked is left alone.

    Raises:
        OSError: no folder can be made there.
    """
    prefix = f".{path.name}.unfinished-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):
            only_copy = not path.exists() and (left / f"{path.name}.old").exists()  # see `exchange`
            if time.time() - left.stat().st_mtime > _YOUNG and not only_copy:
                os.close(_locked(left))
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix))
    lock = None
    try:
        with suppress(OSError):  # not every file system can
            lock = _locked(folder)
        yield folder
    finally:
        # Of what is in it, something of an old directory may resist. What was built is in its place by then.
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
