"""Uploads that cannot be: each refusal is one line that says what to do, and shows no token."""

from __future__ import annotations

import huggingface_hub
import oracle
import pytest
from checkpoint_files import save_hugging_face
from hub_repository import Repository
from hub_server import Fault, HubServer, become_client_of
from huggingface_hub import constants
from oracle import Shape

from rwkv_engine.errors import HubError
from rwkv_engine.hub.download import download
from rwkv_engine.hub.upload import upload

SHAPE = Shape(n_vocab=256)
REPOSITORY = "someone/new"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_hugging_face(oracle.random_weights(SHAPE), SHAPE, tmp_path_factory.mktemp("model"))
    (folder / "README.md").write_text("# A model\n")
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
    assert all(len(repository.messages) == 1 for repository in server.repositories.values()), "something was committed"


def reason(*arguments, **options) -> str:
    """Why an upload is refused; always one line, and never with a token."""
    with pytest.raises(HubError) as caught:
        upload(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert HubServer.writer not in message
    assert HubServer.reader not in message
    return message


def test_access(server, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", server.reader)
    assert "refused access (403): the token is wrong or lacks permission; log in with" in reason(folder, REPOSITORY)
    assert "refused access (401)" in reason(folder, REPOSITORY, token="hf_somethingElse")
    assert "refused access (401)" in reason(folder, "new", token="hf_somethingElse")
    assert 'You have no right to create a model in "else"' in reason(folder, "else/new", token=server.writer)
    monkeypatch.delenv("HF_TOKEN")
    assert "uploading needs a login; log in with `hf auth login`" in reason(folder, REPOSITORY)
    assert server.repositories == {}
    server.repositories[REPOSITORY] = Repository({})
    assert f"You have no right to write to {REPOSITORY}" in reason(folder, REPOSITORY, token=server.reader)


SAYS_NO = [
    (404, "RepoNotFound", "no such owner or repository at"),
    (404, "", "no such owner or repository at"),
    (412, "", "someone else changed the repository meanwhile; run it again; it says: a word of its own"),
    (413, "", "refused the request (413); it says: a word of its own"),
    (429, "", "answered 429; try again later"),
    (500, "", "answered 500; try again later"),
]


@pytest.mark.parametrize("path", ["/api/repos/create", "/commit/"])
@pytest.mark.parametrize(("status", "code", "message"), SAYS_NO)
def test_an_answer_that_is_no(path, status, code, message, server, folder):
    server.faults = [Fault("POST", path, status=status, code=code, message="a word of its own")]
    assert message in reason(folder, REPOSITORY)


def test_someone_else_commits_at_the_same_time(server, folder):
    """Where a repository is to be created, 409 says that it is there, which is well."""
    server.faults = [Fault("POST", "/commit/", status=409)]
    assert "someone else changed the repository meanwhile; run it again" in reason(folder, REPOSITORY)


def test_no_network(server, folder, monkeypatch):
    server.stop()
    said = reason(folder, REPOSITORY)
    assert f"{server.endpoint} cannot be reached" in said
    assert "the repository is as it was; run it again" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be uploaded offline; unset HF_HUB_OFFLINE" in reason(folder, REPOSITORY)


@pytest.mark.parametrize("name", ["", "a/b/c", "some one/x", "-x/y", "a/..", "someone/new.git", "x" * 97, "someone/"])
def test_invalid_repository_names_are_refused(name, server, folder):
    assert "not a name of a repository; expected owner/name" in reason(folder, name)
    assert server.log == []


def test_uploads_of_invalid_folders_are_refused(server, tmp_path):
    assert "not a folder; expected one with the files to upload" in reason(tmp_path / "none", REPOSITORY)
    (tmp_path / "empty").mkdir()
    assert "has no files to upload" in reason(tmp_path / "empty", REPOSITORY)
    file = tmp_path / "file"
    file.write_text("x")
    assert "not a folder" in reason(file, REPOSITORY)
    assert server.repositories == {}


def test_a_file_that_cannot_be_read(server, folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(huggingface_hub.lfs, "getsize", refuse)
    said = reason(folder, REPOSITORY)
    assert f"{folder} cannot be read: Permission denied ({folder / 'README.md'})" in said
    assert server.repositories == {}


def test_a_file_that_changes_on_the_way_is_refused(server, tmp_path, monkeypatch):
    """The store compares what it gets with its name."""
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "model.bin"
    file.write_bytes(b"a" * 1000)
    batch = huggingface_hub._commit_api.post_lfs_batch_info

    def change(*arguments, **options):
        answer = batch(*arguments, **options)
        file.write_bytes(b"b" * 1000)
        return answer

    monkeypatch.setattr(huggingface_hub._commit_api, "post_lfs_batch_info", change)
    assert "refused the request (400)" in reason(tmp_path / "model", REPOSITORY)
    [complaint], server.complaints = server.complaints, []
    assert complaint.endswith("the content is another")


def test_a_card_that_the_hub_does_not_take(server, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("---\nlicense: none-such\n---\n")
    assert 'Invalid metadata in README.md. - "license" must be one of' in reason(tmp_path / "model", REPOSITORY)


@pytest.mark.parametrize("token", ["hf_thatMayWrite\n", "hf_thatMay Write", "hf_thatMayWrit\u00e9"])
def test_an_invalid_token_is_not_shown(token, server, folder):
    said = reason(folder, REPOSITORY, token=token)
    assert "the given token is invalid: expected one word" in said
    assert "thatMay" not in said
    with pytest.raises(Exception, match="the given token is invalid") as caught:
        download(REPOSITORY, token=token)
    assert "thatMay" not in str(caught.value)


def test_a_hub_that_repeats_the_token_is_not_repeated(server, folder):
    server.faults = [Fault("POST", "/api/repos/create", status=400, message=f"what is {server.writer}?")]
    assert "it says: what is (token)?" in reason(folder, REPOSITORY)


def test_an_xet_that_fails_is_one_line(server, folder, monkeypatch):
    """The loopback answers 404 where the real client asks for xet's token."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert "xet-write-token" in reason(folder, REPOSITORY)
