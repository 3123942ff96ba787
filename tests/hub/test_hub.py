"""Hub ids, with the real client against a hub on the loopback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import huggingface_hub
import oracle
import pytest
from checkpoint_files import save_hugging_face, save_pth
from conftest import ROOT
from hub_server import HubServer, become_client_of
from huggingface_hub import constants
from oracle import Shape

from rwkv_engine import RWKV, CheckpointError
from rwkv_engine.hub import download as hub
from rwkv_engine.hub.download import download

SHAPE = Shape(n_vocab=256)
UNUSED = ("README.md", "rust_model.ot", "optimizer.pt", "onnx/model.onnx")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Repositories as people keep them, each with one model and with files that no model needs."""
    root = tmp_path_factory.mktemp("hub")
    weights = oracle.random_weights(SHAPE)
    save_hugging_face(weights, SHAPE, root / "single")
    save_hugging_face(weights, SHAPE, root / "sharded", shards=3)
    save_hugging_face(weights, SHAPE, root / "bin", kind="bin")
    save_hugging_face(weights, SHAPE, root / "sharded-bin", kind="bin", shards=2)
    for name in ("one-raw", "raw", "nothing"):
        (root / name).mkdir()
    save_pth(weights, root / "one-raw" / "RWKV-4.pth")
    for name in ("RWKV-4-a.pth", "RWKV-4-b.pth"):
        save_pth(oracle.random_weights(SHAPE, seed=ord(name[-5])), root / "raw" / name)
    unused = [folder / name for folder in root.iterdir() for name in UNUSED]
    for path in (*unused, root / "single" / "pytorch_model.bin", root / "sharded" / "pytorch_model.bin"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("of no use here")
    return root


@pytest.fixture
def server(repositories, tmp_path, monkeypatch):
    """A hub, and a client with an empty cache and no login.

    The test of the command line sets the environment itself.
    """
    server = HubServer(repositories)
    become_client_of(server, monkeypatch, tmp_path)
    yield server
    huggingface_hub.close_session()
    server.stop()


def reason(*arguments, **options) -> str:
    """Why a download is refused; always one line."""
    with pytest.raises(CheckpointError) as caught:
        download(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(arguments[0])
    return message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repository", "files"),
    [
        ("single", ["config.json", "model.safetensors"]),
        (
            "sharded",
            [
                "config.json",
                *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
                "model.safetensors.index.json",
            ],
        ),
        ("bin", ["config.json", "pytorch_model.bin"]),
        (
            "sharded-bin",
            [
                "config.json",
                *(f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)),
                "pytorch_model.bin.index.json",
            ],
        ),
        ("one-raw", ["RWKV-4.pth"]),
        ("raw/RWKV-4-b.pth", ["RWKV-4-b.pth"]),
    ],
)
def test_only_what_the_model_needs_is_downloaded_and_then_no_server_is_needed(repository, files, server, repositories):
    model = RWKV.from_pretrained(f"someone/{repository}")
    assert server.fetched() == files
    local = RWKV.from_pretrained(repositories / repository)
    assert model.fingerprint == local.fingerprint
    assert model.source.exists()
    server.log.clear()
    RWKV.from_pretrained(f"someone/{repository}")
    assert server.fetched() == []
    server.stop()
    huggingface_hub.close_session()
    assert RWKV.from_pretrained(f"someone/{repository}", offline=True).fingerprint == local.fingerprint


def test_a_revision_is_asked_for_and_is_found_offline_under_its_name(server):
    folder = download("someone/single", revision="v1")
    assert download("someone/single", revision="v1", offline=True) == folder
    assert "not in the hub cache" in reason("someone/single", offline=True)  # main was never asked for
    assert download("someone/single", revision=server.repositories["someone/single"].branches["main"]) == folder
    assert "no revision 'v2'" in reason("someone/single", revision="v2")


def test_a_token(server, monkeypatch):
    server.token = "right"
    assert download("someone/single", token="right").is_dir()
    assert "no such repository" in reason("someone/single")
    assert "give a token" in reason("someone/single")
    assert "refused access (401)" in reason("someone/single", token="wrong")
    monkeypatch.setenv("HF_TOKEN", "right")
    assert download("someone/single").is_dir()


def test_a_gated_repository(server):
    server.refused["single"] = "GatedRepo"
    assert f"grants access on request: ask at {server.endpoint}/someone/single" in reason("someone/single")
    server.refused["single"] = ""  # whatever else forbids it
    assert "refused access (403)" in reason("someone/single")


def test_what_a_repository_does_not_have(server):
    assert "no such repository" in reason("someone/missing")
    assert "has no RWKV-4-c.pth; it has README.md, RWKV-4-a.pth" in reason("someone/raw/RWKV-4-c.pth")
    assert "has 2 models: RWKV-4-a.pth, RWKV-4-b.pth; name one of them, such as someone/raw/RWKV-4-a.pth" in reason(
        "someone/raw"
    )
    assert "the repository has README.md, onnx/model.onnx, optimizer.pt" in reason("someone/nothing")
    assert server.fetched() == []


def test_files_missing_from_the_cache_are_refused_offline(server, monkeypatch):
    assert "not in the hub cache" in reason("someone/single", offline=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "run it once without offline=True" in reason("someone/single")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    download("someone/raw/RWKV-4-a.pth")
    message = reason("someone/raw/RWKV-4-b.pth", offline=True)
    assert "has no RWKV-4-b.pth; it has RWKV-4-a.pth; these are the files in the hub cache" in message
    download("someone/raw/RWKV-4-b.pth")
    assert download("someone/raw/RWKV-4-a.pth", offline=True).name == "RWKV-4-a.pth"


def test_what_another_program_has_downloaded_is_found_offline(server):
    files = ["config.json", "model.safetensors"]
    folder = huggingface_hub.snapshot_download("someone/single", allow_patterns=files)
    assert str(download("someone/single", offline=True)) == folder


def test_no_server(server):
    server.stop()
    message = reason("someone/single")
    assert f"{server.endpoint} cannot be reached" in message
    assert "refused" in message
    assert "offline=True" in message


def test_a_silent_server_times_out(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    server.delay = 1.0
    assert "cannot be reached" in reason("someone/single")


def test_a_server_in_trouble(server):
    server.fault = 503
    assert f"{server.endpoint} answered 503; try again later" in reason("someone/single")


@pytest.mark.slow
def test_a_connection_that_breaks_in_mid_file_goes_on_where_it_broke(server, repositories, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # so much is written at a time; 10 MB otherwise
    whole = (repositories / "single" / "model.safetensors").read_bytes()
    server.break_after = 30_500
    folder = download("someone/single")
    asked = [where for method, file, where in server.log if (method, file) == ("GET", "model.safetensors")]
    assert asked == [None, "bytes=30000-"]
    assert (folder / "model.safetensors").read_bytes() == whole


def test_what_has_arrived_is_kept_when_the_connection_is_lost(server):
    server.break_after, server.reset = 10_000, True
    message = reason("someone/sharded")
    assert f"{server.endpoint} cannot be reached, or the connection broke (ReadError" in message
    assert "run it again, files that arrived whole are kept" in message
    assert server.fetched() == ["config.json", "model-00001-of-00003.safetensors", "model.safetensors.index.json"]
    with pytest.raises(CheckpointError, match=r"'model-00001-of-00003\.safetensors' is not in the directory"):
        RWKV.from_pretrained("someone/sharded", offline=True)
    server.log.clear()
    RWKV.from_pretrained("someone/sharded")
    assert server.fetched() == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "cannot be written: No space left on device"),
        (
            RuntimeError("a new transport\nsays this\n"),
            "the connection broke (RuntimeError: a new transport says this); run it",
        ),
    ],
)
def test_every_error_of_the_library_is_one_line(failure, message, server, monkeypatch):
    def fail(*arguments, **options):
        raise failure

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", fail)
    assert message in reason("someone/single")


@pytest.mark.parametrize("found", ["/commit-of-{name}/{name}", "/another/{name}"])
def test_a_branch_that_moves_during_the_download_mixes_no_two_commits(found, server, monkeypatch):
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, name, **options: found.format(name=name))
    assert "changed while it was downloaded" in reason("someone/single")


@pytest.mark.slow
def test_the_command_line(repositories, tmp_path):
    """In a process of its own that has nothing but its environment."""
    server = HubServer(repositories)
    server.token = "right"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rwkv_engine", "generate", "x", "--seed", "1", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment | more, timeout=120, check=False
        )

    first = run("--model", "someone/sharded", "--revision", "v1", HF_TOKEN="right")
    server.stop()
    second = run("--model", "someone/sharded", "--revision", "v1", "--offline")
    for result in (first, second):
        assert result.returncode == 0, result.stderr
        assert result.stdout == first.stdout
        [line] = result.stderr.splitlines()  # no bar where there is no terminal
        assert line.startswith("read 1 tokens")
