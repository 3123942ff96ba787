"""Uploads, with the real client to a hub on the loopback that looks closely at what it gets."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import oracle
import pytest
from checkpoint_files import save_hugging_face
from hub_repository import LARGE
from hub_server import Fault, HubServer, become_client_of
from huggingface_hub import constants
from oracle import Shape

from rwkv_engine import RWKV
from rwkv_engine.errors import HubError
from rwkv_engine.hub import upload as hub_upload
from rwkv_engine.hub.download import download
from rwkv_engine.hub.upload import upload

SHAPE = Shape(n_vocab=256)
REPOSITORY = "someone/new"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in three shards, a card, a file in a folder, and what is not to be sent."""
    folder = save_hugging_face(oracle.random_weights(SHAPE), SHAPE, tmp_path_factory.mktemp("model"), shards=3)
    others = {"README.md": "---\nlicense: mit\n---\n# A model\n", "plots/loss.txt": "1\n", "empty.txt": ""}
    unwanted = {".git/config": "no", ".cache/huggingface/x": "no", "plots/.git/config": "no"}
    for name, content in (others | unwanted).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub without repositories, and a client that is logged in with the right to write."""
    server = HubServer()
    become_client_of(server, monkeypatch, tmp_path)
    monkeypatch.setenv("HF_TOKEN", server.writer)
    yield server
    huggingface_hub.close_session()
    server.stop()
    assert server.complaints == []


def content(folder) -> dict[str, bytes]:
    """What is to be uploaded."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if ".git/" not in name and ".cache/" not in name}


def large(folder) -> list[str]:
    """SHA-256 of the files that go into the store."""
    return sorted(hashlib.sha256(data).hexdigest() for name, data in content(folder).items() if name.endswith(LARGE))


def stored(server) -> list[str]:
    """SHA-256 of what was sent to the store, as often as it was sent."""
    return sorted(path.split("/")[4] for method, path, _ in server.log if method == "PUT")


def at_hub(server, branch="main") -> dict[str, bytes]:
    files = server.repositories[REPOSITORY].files(branch)
    return {path: data for path, data in files.items() if path != ".gitattributes"}


def reason(*arguments, **options) -> str:
    """Why an upload is refused; always one line, and never with a token."""
    with pytest.raises(HubError) as caught:
        upload(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert HubServer.writer not in message
    assert HubServer.reader not in message
    return message


def test_what_was_uploaded_can_be_downloaded(server, folder, capfd):
    assert upload(folder, REPOSITORY) == f"{server.endpoint}/{REPOSITORY}"
    assert at_hub(server) == content(folder)
    repository = server.repositories[REPOSITORY]
    assert repository.messages == ["initial commit", "Upload RWKV-4 model"]
    assert not repository.is_private
    assert stored(server) == large(folder)
    assert capfd.readouterr().err == ""  # no bar where there is no terminal
    path = download(REPOSITORY)
    assert {p.name: p.read_bytes() for p in path.glob("model*")} == {
        name: data for name, data in content(folder).items() if name.startswith("model")
    }
    assert RWKV.from_pretrained(REPOSITORY).fingerprint == RWKV.from_pretrained(folder).fingerprint


def test_a_second_upload_sends_what_is_new_and_leaves_the_rest(server, folder, tmp_path):
    upload(folder, REPOSITORY)
    repository = server.repositories[REPOSITORY]
    server.log.clear()
    upload(folder, REPOSITORY)
    assert stored(server) == []
    assert len(repository.messages) == 2  # and no commit of nothing
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "optimizer.bin").write_bytes(b"more")
    upload(tmp_path / "more", REPOSITORY, message="The optimizer too")
    assert stored(server) == [hashlib.sha256(b"more").hexdigest()]
    assert at_hub(server) == content(folder) | {"optimizer.bin": b"more"}
    assert repository.messages[2:] == ["The optimizer too"]


def test_a_large_file_goes_in_parts(server, folder):
    server.part_size = 10_000
    upload(folder, REPOSITORY)
    assert at_hub(server) == content(folder)
    parts = [path for method, path, _ in server.log if method == "PUT" and path.count("/") == 5]
    assert len(parts) == 3 + 3  # of 27, 6 and 25 kB
    assert download(REPOSITORY).is_dir()


def test_a_private_repository_by_its_bare_name(server, folder, monkeypatch):
    assert upload(folder, "new", private=True) == f"{server.endpoint}/{REPOSITORY}"
    assert server.repositories[REPOSITORY].is_private
    assert download(REPOSITORY).is_dir()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Exception, match="no such repository"):
        download(REPOSITORY)


def test_a_branch(server, folder):
    assert upload(folder, REPOSITORY, revision="half/way") == f"{server.endpoint}/{REPOSITORY}/tree/half%2Fway"
    assert at_hub(server) == {}
    assert at_hub(server, "half/way") == content(folder)
    upload(folder, REPOSITORY, revision="half/way")  # which is there now
    assert (download(REPOSITORY, revision="half/way") / "config.json").is_file()


def test_a_token_that_is_given_comes_before_that_of_the_login(server, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", server.reader)
    upload(folder, REPOSITORY, token=server.writer)
    assert at_hub(server) == content(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "/store/", cut=3_000),
        Fault("PUT", "/store/", status=500),
        Fault("PUT", "/store/", status=503, after=1),
        Fault("PUT", "/store/", silent=1.2),
        Fault("POST", "/batch", status=503),
        Fault("POST", "/preupload", status=500),
        Fault("POST", "/verify", status=502),
    ],
    ids=lambda fault: f"{fault.path}, {fault.status or fault.cut or 'silence'}",
)
def test_temporary_failures_are_retried(fault, server, folder, monkeypatch):
    monkeypatch.setattr(hub_upload, "SILENCE", 0.5 if fault.silent else 60)
    server.faults = [fault := replace(fault)]
    upload(folder, REPOSITORY)
    assert fault.times == 0
    assert at_hub(server) == content(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("PUT", "/store/", cut=3_000, after=1, times=99), "cannot be reached, or the connection broke ("),
        (Fault("PUT", "/store/", status=500, after=1, times=99), "answered 500; try again later"),
        (Fault("PUT", "/store/", silent=1.2, after=1, times=99), "the connection broke (ReadTimeout"),
        (Fault("POST", "/commit/", cut=100), "the connection broke ("),
        (Fault("POST", "/commit/", status=503), "answered 503; try again later"),
        (Fault("POST", "/commit/", silent=1.2), "the connection broke (ReadTimeout"),
    ],
    ids=lambda value: f"{value.path}, {value.status or value.cut or 'silence'}" if isinstance(value, Fault) else "",
)
def test_what_breaks_off_leaves_the_repository_as_it_was(fault, message, server, folder, tmp_path, monkeypatch):
    """And the next run sends what is missing."""
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "README.md").write_text("before")
    upload(tmp_path / "before", REPOSITORY)
    monkeypatch.setattr(hub_upload, "SILENCE", 0.5 if fault.silent else 60)
    passed = 1 if fault.after else 3
    server.faults, server.log = [replace(fault)], []
    said = reason(folder, REPOSITORY)
    assert message in said
    assert at_hub(server) == {"README.md": b"before"}
    arrived = sorted(server.repositories[REPOSITORY].objects)
    assert len(arrived) == passed
    server.faults, server.log = [], []
    upload(folder, REPOSITORY)
    assert sorted(arrived + stored(server)) == large(folder)
    assert at_hub(server) == content(folder)


def test_ctrl_c_ends_it_at_once_and_the_next_run_goes_on(server, folder, monkeypatch):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    server.faults = [Fault("PUT", "/store/", cut=3_000, event=interrupt, silent=5.0, after=1)]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        upload(folder, REPOSITORY)
    assert time.monotonic() - began < 4.0
    assert at_hub(server) == {}
    assert len(server.repositories[REPOSITORY].objects) == 1
    server.log.clear()
    upload(folder, REPOSITORY)
    assert len(stored(server)) == 2
    assert at_hub(server) == content(folder)


def test_xet_is_used_where_it_is_installed(server, folder, monkeypatch):
    """The loopback does not speak it, so what stands in for its client puts files into the store in its own way."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    sent = []

    class Commit:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def start_upload_file(self, path, sha256):
            with open(path, "rb") as file:
                data = file.read()
            digest = hashlib.sha256(data).hexdigest()
            server.repositories[REPOSITORY].objects[digest] = data
            sent.append(os.path.basename(path))
            return SimpleNamespace(result=lambda: SimpleNamespace(xet_info=SimpleNamespace(sha256=digest)))

    session = SimpleNamespace(new_upload_commit=lambda **options: Commit())
    monkeypatch.setattr("huggingface_hub.utils._xet.get_xet_session", lambda: session)
    upload(folder, REPOSITORY)
    assert stored(server) == []
    assert sent == sorted(name for name in content(folder) if name.endswith(LARGE))
    assert at_hub(server) == content(folder)
