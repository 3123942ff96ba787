"""Downloads that broke off go on in the next run, and a hub that cannot be asked stops nobody who has the model."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import huggingface_hub
import oracle
import pytest
from checkpoint_files import save_hugging_face
from conftest import ROOT
from hub_server import Fault, HubServer, become_client_of
from huggingface_hub import constants
from oracle import Shape

from rwkv_engine import CheckpointError
from rwkv_engine.hub.download import download

SHAPE = Shape(n_vocab=256)
WEIGHTS = "model.safetensors"
CHUNK = 1000  # so much is written at a time; 10 MB otherwise


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    save_hugging_face(oracle.random_weights(SHAPE), SHAPE, root / "single")
    save_hugging_face(oracle.random_weights(SHAPE), SHAPE, root / "sharded", shards=3)
    return root


@pytest.fixture
def server(repositories, tmp_path, monkeypatch):
    server = HubServer(repositories)
    become_client_of(server, monkeypatch, tmp_path)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    yield server
    huggingface_hub.close_session()
    server.stop()


def ranges(server) -> list[str | None]:
    """With what range the weights were asked for, each time."""
    return [where for method, file, where in server.log if (method, file) == ("GET", WEIGHTS)]


def blobs(cache) -> list:
    return sorted((cache / "models--someone--single" / "blobs").iterdir())


def start_of(where: str) -> int:
    return int(where.removeprefix("bytes=").removesuffix("-"))


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_was(server, repositories, tmp_path):
    server.break_after, arrived = 40_500, threading.Event()
    server.on_break = lambda: arrived.set() or time.sleep(60)
    program = f"""
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = {CHUNK}
from rwkv_engine.hub.download import download
download("someone/single")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_ENDPOINT": server.endpoint, "HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment)
    assert arrived.wait(100)
    time.sleep(0.3)  # for the client to write what it has
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    server.on_break = lambda: None

    folder = download("someone/single")
    first, second = ranges(server)
    assert first is None
    assert 20_000 <= start_of(second) <= 40_000
    assert (folder / WEIGHTS).read_bytes() == (repositories / "single" / WEIGHTS).read_bytes()
    assert all(path.suffix == "" for path in blobs(tmp_path / "cache"))  # nothing half is left


def test_so_does_one_that_ctrl_c_ended(server, repositories):
    server.break_after = 40_500
    server.on_break = lambda: (time.sleep(0.3), os.kill(os.getpid(), signal.SIGINT), time.sleep(0.3))
    with pytest.raises(KeyboardInterrupt):
        download("someone/single")
    server.on_break = lambda: None
    folder = download("someone/single")
    assert start_of(ranges(server)[-1]) >= 20_000
    assert (folder / WEIGHTS).read_bytes() == (repositories / "single" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("found", ["other bytes", "too many", "all of it"])
def test_what_was_left_half_is_checked(found, server, repositories, tmp_path):
    whole = (repositories / "single" / WEIGHTS).read_bytes()
    content = {"other bytes": b"x" * 50_000, "too many": whole + b"x", "all of it": whole}[found]
    folder = tmp_path / "cache" / "models--someone--single" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{hashlib.sha256(whole).hexdigest()}.partial").write_bytes(content)
    path = download("someone/single")
    assert (path / WEIGHTS).read_bytes() == whole
    assert ranges(server) == {"other bytes": ["bytes=50000-", None], "too many": [None], "all of it": []}[found]
    assert all(path.suffix == "" for path in blobs(tmp_path / "cache"))


@pytest.mark.slow
def test_two_at_once_download_it_once(server):
    server.delay = 0.1  # both are asking before one is done
    threads = [threading.Thread(target=download, args=["someone/single"]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ranges(server) == [None]


def unreachable(server, monkeypatch, kind):
    if kind == "stopped":
        server.stop()
        huggingface_hub.close_session()
    elif kind == "silent":
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        server.delay = 1.0
    else:
        server.fault = kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stopped", "silent", 500, 503])
@pytest.mark.parametrize("repository", ["single", "sharded"])
def test_without_a_hub_the_cache_is_used_with_a_notice(kind, repository, server, monkeypatch, capsys):
    folder = download(f"someone/{repository}", revision="v1")
    assert capsys.readouterr().err == ""
    unreachable(server, monkeypatch, kind)
    assert download(f"someone/{repository}", revision="v1") == folder
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rwkv_engine: someone/{repository}: {server.endpoint} cannot be reached (")
    assert "cache" in line
    with pytest.raises(CheckpointError, match=f"{server.endpoint} (cannot be reached|answered)"):
        download(f"someone/{repository}")  # main was never asked for
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("status", "code"), [(401, ""), (401, "RepoNotFound"), (403, ""), (404, "RepoNotFound"), (429, "")]
)
def test_a_hub_that_answers_no_is_heard(status, code, server):
    download("someone/single")
    server.faults = [Fault("GET", "/api/models", status=status, code=code, times=99)]
    with pytest.raises(CheckpointError):
        download("someone/single")
    assert ranges(server) == [None]


def test_an_incomplete_model_is_not_used_without_a_hub(server, tmp_path):
    download("someone/sharded")
    (shard,) = (tmp_path / "cache" / "models--someone--sharded" / "snapshots").glob(
        "*/model-00002-of-00003.safetensors"
    )
    shard.unlink()
    server.fault = 503
    with pytest.raises(CheckpointError, match="answered 503; try again later"):
        download("someone/sharded")


def test_the_command_line_goes_on_without_a_hub(server, call):
    command = ["generate", "x", "--seed", "1", "--max-new-tokens", "4", "--model", "someone/single"]
    code, text, _ = call(*command)
    assert code == 0
    unreachable(server, None, "stopped")
    code, again, said = call(*command)
    assert (code, again) == (0, text)
    first, last = said.splitlines()
    assert "cannot be reached (ConnectError" in first
    assert last.startswith("read 1 tokens")
