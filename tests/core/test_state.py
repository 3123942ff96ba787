from __future__ import annotations

import os

import pytest
import torch

from rwkv_engine import RWKV, ModelConfig, RequestError, State


@pytest.fixture
def model(each_version):
    return RWKV.from_pretrained(each_version)


def test_save_and_load_continue_bit_for_bit(model, tmp_path):
    _, state = model.forward([1, 2, 3])
    state.save(tmp_path / "s.safetensors")
    loaded = State.load(tmp_path / "s.safetensors")
    assert loaded.fingerprint == model.fingerprint
    assert torch.equal(model.forward([4], state)[0], model.forward([4], loaded)[0])
    assert os.stat(tmp_path / "s.safetensors").st_mode & 0o444 == 0o444 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "s.safetensors"
    _, state = model.forward([1])
    state.save(path)
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("rwkv_engine.core.state.save_file", full_disk)
    with pytest.raises(RequestError, match="no space"):
        state.save(path)
    with pytest.raises(RequestError, match="cannot be written"):
        state.save(tmp_path / "missing" / "s.safetensors")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.safetensors"]


def test_a_foreign_state_is_refused(model, tmp_path):
    weights = torch.load(model.source, weights_only=True)
    torch.save(weights | {"ln_out.bias": weights["ln_out.bias"] + 1}, tmp_path / "o.pth")
    other = RWKV.from_pretrained(tmp_path / "o.pth")
    _, state = other.forward([1])
    with pytest.raises(RequestError, match="another model"):
        model.forward([1], state)


def test_a_state_of_another_batch_is_refused(model):
    _, state = model.forward(torch.tensor([[1], [2]]))
    with pytest.raises(RequestError, match="2 sequences given for a batch of 1"):
        model.forward([1], state)


def test_the_initial_state_equals_none(model):
    given, _ = model.forward([1, 2], model.engine.initial_state())
    none, after = model.forward([1, 2], None)
    unmarked, marked = model.forward([1, 2], State.initial(model.config))
    assert torch.equal(given, none)
    assert torch.equal(given, unmarked)
    assert after.fingerprint == marked.fingerprint == model.fingerprint


def test_a_clone_shares_no_memory(model):
    _, state = model.forward([1])
    copy = state.clone()
    for field in copy.fields.values():
        field.zero_()
    assert all(field.abs().sum() > 0 for field in state.fields.values())


@pytest.mark.parametrize("content", [b"", b"not a state", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_files_that_are_not_states_are_refused(content, tmp_path):
    path = tmp_path / "s.safetensors"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"s\.safetensors"):
        State.load(path)
    with pytest.raises(RequestError):
        State.load(tmp_path / "missing")


def test_a_checkpoint_is_not_a_state(tales, tmp_path):
    with pytest.raises(RequestError, match="expected a saved state"):
        State.load(tales.source / "model.safetensors")


def test_only_text_is_remembered_with_a_state(model, tmp_path):
    _, state = model.forward([1, 2])
    for about in ({"n": 5}, {"n": None}, {5: "n"}, {"n": "\udcff"}):
        with pytest.raises(RequestError, match="about"):
            state.save(tmp_path / "s", about)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda state, folder: state.save(None),
        lambda state, folder: state.save(folder / "s", ["a"]),
        lambda state, folder: State.load(None),
        lambda state, folder: State.about(5),
        lambda state, folder: State.load(folder),
        lambda state, folder: os.mkfifo(folder / "pipe") or State.load(folder / "pipe"),
        lambda state, folder: State.join([]),
        lambda state, folder: State.join([1]),
        lambda state, folder: state.rows(torch.tensor([7])),
        lambda state, folder: state.rows("a"),
        lambda state, folder: State.initial(ModelConfig(1, 8, 8, 8, 8), -1),
    ],
)
def test_invalid_arguments_are_refused(call, model, tmp_path):
    _, state = model.forward([1, 2])
    with pytest.raises(RequestError, match="expected"):
        call(state, tmp_path)


def test_a_missing_state_file_is_named_once(tmp_path):
    path = tmp_path / "missing.state"
    with pytest.raises(RequestError) as caught:
        State.load(path)
    assert str(caught.value) == f"{path}: no saved state can be read here: there is no such file"
