"""Sessions in files: whole after any crash, each for one owner and one user at a time, and bounded."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from rwkv_engine import RequestError
from rwkv_engine.core import Snapshot, State

try:
    from rwkv_engine.portable import Sealer, SealingKeys, SessionError, Sessions, StateRefused
except ImportError as error:
    pytest.skip(f"{error.name} is not installed, which the extra portable has", allow_module_level=True)

KEY = b"k" * 32
DAY = 86400.0


def snapshot_of(model, n):
    state = State.initial(model.config)
    return Snapshot(State(state.fields, torch.tensor([n]), model.fingerprint), (n % 7,))


def sessions_in(folder, model, **options):
    options = {"seconds": DAY} | options
    sealer = Sealer(SealingKeys([KEY]), model.config, model.fingerprint, model.tokenizer, options["seconds"])
    return Sessions(folder, sealer, **options)


def position(sessions, name, owner=""):
    with sessions.use(name, owner) as session:
        return session.snapshot and int(session.snapshot.state.position)


def save(sessions, name, snapshot, owner=""):
    with sessions.use(name, owner) as session:
        session.save(snapshot)


@pytest.fixture
def sessions(talker, tmp_path):
    made = sessions_in(tmp_path / "sessions", talker)
    yield made
    made.close()


def refused(code, function, *arguments):
    with pytest.raises(SessionError) as error:
        function(*arguments)
    assert error.value.code == code


def test_a_session_goes_on(sessions, talker, tmp_path):
    assert position(sessions, "a") is None
    save(sessions, "a", snapshot_of(talker, 5))
    save(sessions, "b", snapshot_of(talker, 6))
    save(sessions, "a", snapshot_of(talker, 7))
    with sessions.use("a") as session:
        assert session.snapshot.unread == (0,)
    assert (position(sessions, "a"), position(sessions, "b"), position(sessions, "A")) == (7, 6, None)
    assert [info.name for info in sessions.all()] == ["a", "b"]
    sessions.close()
    later = sessions_in(tmp_path / "sessions", talker)
    assert position(later, "a") == 7
    later.delete("a")
    assert position(later, "a") is None
    refused("session_not_found", later.delete, "a")
    later.close()
    sessions._held = os.open(tmp_path, os.O_RDONLY)  # for the fixture


def test_owners_do_not_see_each_other(sessions, talker):
    save(sessions, "a", snapshot_of(talker, 5), "alice")
    assert position(sessions, "a", "eve") is None
    assert position(sessions, "a") is None
    assert sessions.all("eve") == sessions.all() == []
    refused("session_not_found", sessions.delete, "a", "eve")
    # Not even if the files are moved.
    [path] = sessions._folder.glob("*/*")
    for name, owner in (("a", "eve"), ("b", "alice")):
        other = sessions._path(name, owner)
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes())
        with pytest.raises(StateRefused):
            position(sessions, name, owner)


def test_one_user_at_a_time(sessions, talker):
    with sessions.use("a") as session:
        refused("session_busy", position, sessions, "a")
        refused("session_busy", sessions.delete, "a")
        assert position(sessions, "a", "other owner") is None
        assert position(sessions, "b") is None
    with pytest.raises(RequestError, match="no longer in use"):
        session.save(snapshot_of(talker, 1))
    with pytest.raises(ZeroDivisionError), sessions.use("a"):
        1 / 0  # noqa: B018
    assert position(sessions, "a") is None


def test_many_threads(sessions, talker):
    """Each adds one to the session as often as it gets it, so none of the steps may be lost."""
    done, go_on = [], threading.Event()

    def work():
        go_on.wait()
        for _ in range(10_000):
            try:
                with sessions.use("a") as session:
                    before = int(session.snapshot.state.position) if session.snapshot else 0
                    session.save(snapshot_of(talker, before + 1))
                    done.append(1)
            except SessionError:
                time.sleep(0.001)
            if len(done) >= 20:
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert position(sessions, "a") == len(done) >= 20


def test_names(sessions, tmp_path):
    for name in ("", ".", "..", "a/b", "/etc/passwd", "a\0", "a\n", "ä", "a" * 65, "-a", ".a"):
        with pytest.raises(RequestError, match="expected up to 64 letters"):
            position(sessions, name)
        with pytest.raises(RequestError, match="expected up to 64 letters"):
            sessions.delete(name)
    assert position(sessions, "A" * 64) is None
    assert not list(tmp_path.glob("*/*"))


def test_limits(talker, tmp_path):
    few = sessions_in(tmp_path / "few", talker, most=2)
    save(few, "a", snapshot_of(talker, 1))
    with few.use("b"):  # has no file yet, and counts
        refused("session_limit_exceeded", position, few, "c")
    save(few, "b", snapshot_of(talker, 1))
    refused("session_limit_exceeded", position, few, "c")
    save(few, "a", snapshot_of(talker, 2))
    save(few, "c", snapshot_of(talker, 1), "another")
    few.delete("a")
    save(few, "c", snapshot_of(talker, 1))
    most = few._sealer.most_bytes
    small = sessions_in(tmp_path / "small", talker, most_bytes=2 * most - 1)
    with small.use("a"):
        refused("session_limit_exceeded", position, small, "b", "another")
    save(small, "a", snapshot_of(talker, 1))
    assert position(small, "b", "another") is None, "the file is smaller than it could be"


def test_expiry(talker, tmp_path):
    now = [time.time()]
    sessions = sessions_in(tmp_path, talker, seconds=60.0, clock=lambda: now[0])
    save(sessions, "a", snapshot_of(talker, 1))
    save(sessions, "b", snapshot_of(talker, 1))
    now[0] += 50
    assert position(sessions, "a") == 1
    now[0] += 20
    refused("session_not_found", sessions.delete, "b")
    assert position(sessions, "a") is None
    assert sessions.all() == []


def test_damaged_files_are_refused(sessions, talker):
    save(sessions, "a", snapshot_of(talker, 1))
    path = sessions._path("a", "")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:], whole[:99] + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(StateRefused):
            position(sessions, "a")
    sessions.delete("a")
    assert position(sessions, "a") is None


def test_a_session_that_cannot_be_saved_stays(sessions, talker, monkeypatch):
    save(sessions, "a", snapshot_of(talker, 1))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save(sessions, "a", snapshot_of(talker, 2))
    assert position(sessions, "a") == 1
    assert not list(sessions._folder.glob("*/.*"))


def test_a_folder_of_another_process(sessions, talker, tmp_path):
    with pytest.raises(RequestError, match="another process keeps its sessions here"):
        sessions_in(tmp_path / "sessions", talker)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be the folder of sessions"):
        sessions_in(tmp_path / "file", talker)
    assert (tmp_path / "sessions").stat().st_mode & 0o077 == 0


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_sessions import save, sessions_in, snapshot_of
from rwkv_engine import RWKV

model = RWKV.from_pretrained("tales")
sessions = sessions_in(Path(sys.argv[1]), model)
for n in range(1, 100000):
    save(sessions, "a", snapshot_of(model, n))
    print(n, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_session(tales, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for seed in range(3):
        folder = tmp_path / str(seed)
        command = [sys.executable, "-c", WRITER, str(folder), os.path.dirname(__file__)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout.readline() == b"1\n"
            time.sleep(0.05 + 0.1 * random.Random(seed).random())
            process.send_signal(signal.SIGKILL)
            last = int([b"1", *process.stdout.read().split()][-1])
        sessions = sessions_in(folder, tales)
        assert position(sessions, "a") in (last, last + 1)
        assert not list(folder.glob("*/.*"))
        sessions.close()


def test_expired_sessions_of_clients_that_are_gone_take_no_room(tales, tmp_path):
    now, snapshot = [time.time()], snapshot_of(tales, 1)
    sessions = sessions_in(tmp_path, tales, clock=lambda: now[0])
    sessions._most_bytes = sessions._sealer.most_bytes  # there is room for one
    save(sessions, "a", snapshot, "gone")
    refused("session_limit_exceeded", save, sessions, "a", snapshot, "new")
    now[0] += 2 * DAY
    save(sessions, "a", snapshot, "new")
    assert len(list(tmp_path.glob("*/*.state"))) == 1
    sessions.close()
