"""A directory in the place of another, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from rwkv_engine.storage import atomic
from rwkv_engine.storage.atomic import replace_directory_atomically


def write(path, *names, claims=lambda name: False):
    with replace_directory_atomically(path, claims) as new:
        for name in names:
            (new / name).write_text(f"new {name}")


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(params=["exchanged", "renamed", "unsupported", "no links"])
def system(request, monkeypatch):
    """Linux; one that knows no exchange; one whose file system does not; and one without hard links."""
    if request.param == "renamed":
        monkeypatch.setattr(atomic, "_renameat2", None)
    elif request.param == "unsupported":
        monkeypatch.setattr(atomic, "_renameat2", lambda *arguments: -1)
        monkeypatch.setattr(atomic.ctypes, "get_errno", lambda: errno.EINVAL)
    elif request.param == "no links":

        def refuse(*arguments, **options):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(atomic.os, "link", refuse)
    return request.param


def test_new_files_replace_old_ones_and_the_rest_is_kept(system, tmp_path):
    path = tmp_path / "out.old"
    write(path, "a", "b")
    (path / "mine" / "deep").mkdir(parents=True)
    (path / "mine" / "deep" / "file").write_text("mine")
    (path / "gone").write_text("old")
    (path / "link").symlink_to("mine/deep/file")
    inode = (path / "mine" / "deep" / "file").stat().st_ino
    write(path, "b", "c", claims=lambda name: name in ("a", "gone"))
    assert content(path) == {"b": "new b", "c": "new c", "mine/deep/file": "mine", "link": "mine"}
    assert os.readlink(path / "link") == "mine/deep/file"
    assert ((path / "mine" / "deep" / "file").stat().st_ino == inode) == (system != "no links")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_an_error_leaves_what_was_there(error, tmp_path):
    def fail(path):
        with replace_directory_atomically(path, lambda name: True) as new:
            (new / "half").write_text("x")
            raise error

    write(tmp_path / "out", "a")
    for path in (tmp_path / "out", tmp_path / "made" / "for" / "it"):
        with pytest.raises(error):
            fail(path)
    assert content(tmp_path) == {"out/a": "new a"}
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_disk_that_is_full_when_all_is_written_leaves_what_was_there(tmp_path, monkeypatch):
    """Some file systems tell only when asked whether it is on the disk."""
    write(tmp_path / "out", "a")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "out", "a", "b")
    assert content(tmp_path) == {"out/a": "new a"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others know no exchange")
def test_at_no_moment_is_there_nothing(tmp_path, monkeypatch):
    """Two renames would leave one, too short for a test that looks at random moments."""
    write(tmp_path / "out", "a")

    def rename(source, target):
        raise AssertionError("renamed")

    monkeypatch.setattr(atomic.os, "rename", rename)
    write(tmp_path / "out", "b")
    assert content(tmp_path) == {"out/a": "new a", "out/b": "new b"}


def test_an_exchange_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    write(tmp_path / "out", "a")
    monkeypatch.setattr(atomic, "_renameat2", None)
    real = os.rename

    def rename(source, target):
        if Path(target) == tmp_path / "out" and Path(source).name == "out":
            raise OSError(errno.EBUSY, "busy")
        real(source, target)

    monkeypatch.setattr(atomic.os, "rename", rename)
    with pytest.raises(OSError, match="busy"):
        write(tmp_path / "out", "b")
    assert content(tmp_path) == {"out/a": "new a"}


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    """Its lock went with it. What another process is at, or has only just begun, stays."""
    folders = {state: tmp_path / f".out.unfinished-{state}" for state in ("killed", "at work", "young")}
    other = tmp_path / ".other.unfinished-killed"
    for folder in (*folders.values(), other):
        (folder / "out").mkdir(parents=True)
        (folder / "out" / "file").write_text("half")
        if folder.name != ".out.unfinished-young":
            os.utime(folder, (0, 0))
    descriptor = os.open(folders["at work"], os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    write(tmp_path / "out", "a")
    assert {*tmp_path.iterdir()} == {tmp_path / "out", folders["at work"], folders["young"], other}
    os.close(descriptor)
    write(tmp_path / "out", "b")
    assert {*tmp_path.iterdir()} == {tmp_path / "out", folders["young"], other}


def test_an_old_directory_that_is_nowhere_else_is_not_removed(tmp_path):
    """As a process leaves it that is killed between two renames."""
    old = tmp_path / ".out.unfinished-x" / "out.old"
    old.mkdir(parents=True)
    os.utime(old.parent, (0, 0))
    write(tmp_path / "out", "a")
    assert old.exists()
    write(tmp_path / "out", "a")
    assert not old.exists()


def test_a_folder_at_work_is_locked(tmp_path):
    with replace_directory_atomically(tmp_path / "out", lambda name: True) as new:
        os.utime(new.parent, (0, 0))
        write(tmp_path / "out", "second")
        (new / "first").write_text("new first")
    assert content(tmp_path) == {"out/first": "new first"}


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError):
        write(tmp_path / "out", "a")
    assert content(tmp_path) == {"out": "mine"}


def test_the_permissions_are_those_of_any_new_directory(tmp_path):
    (tmp_path / "usual").mkdir()
    write(tmp_path / "out", "a")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
