"""From the hub, converted, to the hub and back: commands and programs with the real client to a hub on the loopback."""

from __future__ import annotations

import huggingface_hub
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from hub_server import HubServer, become_client_of
from oracle import Shape

from rwkv_engine import RWKV
from rwkv_engine.auto import AutoModelForCausalLM
from rwkv_engine.hub.download import download
from rwkv_engine.hub.upload import upload

IDS = torch.tensor([[7, 1, 250, 3, 3]])
CONVERT = ("convert", "--repo_id", "someone/raw", "--checkpoint_file", "RWKV-4-raven.pth", "--output_dir")
PUSH = ("--push_to_hub", "--model_name", "someone/converted")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with a raw model, and a client that is logged in with the right to write."""
    server = HubServer()
    become_client_of(server, monkeypatch, tmp_path / "client")
    monkeypatch.setenv("HF_TOKEN", server.writer)
    (tmp_path / "raw").mkdir()
    save_pth(oracle.random_weights(Shape(n_vocab=256)), tmp_path / "raw" / CONVERT[4], torch.bfloat16)
    upload(tmp_path / "raw", "someone/raw")
    yield server
    huggingface_hub.close_session()
    server.stop()
    assert server.complaints == []


def test_a_raw_model_becomes_one_that_all_can_load(server, call, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    code, text, errors = call(*CONVERT, str(tmp_path / "hf"), *PUSH)
    assert (code, text) == (0, ""), errors
    assert errors.splitlines()[-1] == f"uploaded to {server.endpoint}/someone/converted"
    mine = RWKV.from_pretrained("someone/converted")
    assert mine.fingerprint == RWKV.from_pretrained("someone/raw").fingerprint
    logits, _ = mine.forward(IDS, full_output=True)
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(download("someone/converted"), dtype=torch.float32)
        expected = theirs.eval()(IDS).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_trained_model_goes_back(server, call, tmp_path):
    assert call(*CONVERT, str(tmp_path / "hf"), *PUSH)[0] == 0
    model = AutoModelForCausalLM.from_pretrained("someone/converted", dtype="auto")
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    assert model.push_to_hub("someone/trained", private=True) == f"{server.endpoint}/someone/trained"
    assert server.repositories["someone/trained"].is_private
    again = AutoModelForCausalLM.from_pretrained("someone/trained", dtype="auto")
    trained = model.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("options", "token", "message", "left"),
    [
        (("--repo_id", "someone/none"), "writer", "someone/none/RWKV-4-raven.pth: no such path here", False),
        (("--checkpoint_file", "other.pth"), "writer", "the repository has no other.pth; it has", False),
        (PUSH, "reader", "the converted model is whole in", True),
        (PUSH, "", "uploading needs a login", True),
    ],
    ids=["no repository", "no file", "no right to write", "no login"],
)
def test_what_the_hub_refuses_is_one_line(options, token, message, left, server, call, tmp_path, monkeypatch):
    if token:
        monkeypatch.setenv("HF_TOKEN", getattr(server, token))
    else:
        monkeypatch.delenv("HF_TOKEN")
    folder = tmp_path / "hf"
    code, text, errors = call(*CONVERT, str(folder), *options)
    assert (code, text) == (1, "")
    said = errors.splitlines()[-1]
    assert said.startswith("rwkv-engine: error: ")
    assert message in said
    assert len(errors.splitlines()) == 1 + left
    assert folder.exists() == left
    if left:
        assert RWKV.from_pretrained(folder)
