"""What is saved here transformers reads, and the other way round; what goes to the hub is what is saved."""

from __future__ import annotations

import json

import oracle
import pytest
import torch
from auto_models import SHAPE, difference, folder_of, ours, random_ids, theirs
from checkpoint_files import as_torch
from oracle import Shape

from rwkv_engine import CheckpointError, RequestError, StrategyError
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.convert import bytes_of, to_hugging_face
from rwkv_engine.models.dense import checkpoint_dtypes, checkpoint_tensors


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


@pytest.mark.parametrize("trained", [False, True])
def test_transformers_loads_saved_models(trained, folder, tmp_path):
    mine, ids = ours(folder), random_ids(2, 9)
    mine.config.eos_token_id = 5
    mine.generation_config["max_new_tokens"] = 7
    if trained:
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
        mine(ids, labels=ids).loss.backward()
        optimizer.step()
    mine.save_pretrained(tmp_path / "out", max_shard_size="10KB")
    assert mine.is_trainable == trained, "saving converts nothing"
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    with torch.no_grad():
        expected = mine(ids).logits
        assert difference(theirs(tmp_path / "out")(ids).logits, expected) < 1e-4
        again = ours(tmp_path / "out")
        assert difference(again(ids).logits, expected) < 1e-5
    assert again.config.eos_token_id == 5
    assert again.generation_config == {"max_new_tokens": 7}
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["rescale_every"] == 0
    saved = Checkpoint.open(tmp_path / "out")
    for name, tensor in checkpoint_tensors(mine.core):
        assert torch.equal(saved.read(name), tensor), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_saved_by_transformers_are_loaded(dtype, folder, tmp_path):
    peer = theirs(folder, dtype=getattr(torch, dtype))
    peer.save_pretrained(tmp_path / "theirs")
    mine, ids = ours(tmp_path / "theirs", dtype="auto"), random_ids(2, 9)
    assert mine.dtype == getattr(torch, dtype)
    with torch.no_grad():
        reference = ours(folder, dtype=dtype)(ids).logits
        # transformers rounds the vectors too, but for two of them.
        assert difference(mine(ids).logits, reference) < (1e-6 if dtype == "float32" else 0.05)
        assert difference(mine(ids).logits, peer(ids).logits) < (1e-4 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu fp32 *2 -> cpu fp16"])
def test_tensors_of_a_loaded_model_equal_those_of_the_file(strategy, trainable, folder):
    mine = ours(folder, strategy=strategy)
    if trainable:
        mine.train()
    weights = as_torch(oracle.random_weights(SHAPE))
    dtypes = checkpoint_dtypes(mine.core)
    for name, tensor in checkpoint_tensors(mine.core):
        assert tensor.dtype == dtypes[name] == (torch.float32 if tensor.ndim == 1 else tensor.dtype)
        assert torch.equal(tensor, weights.pop(name).view(tensor.shape).to(tensor.dtype)), name
    assert not weights


def test_saving_is_refused(folder, tmp_path):
    with pytest.raises(StrategyError, match="no place for quantised"):
        ours(folder, load_in_8bit=True).save_pretrained(tmp_path / "out")
    with pytest.raises(RequestError, match="pickles are not written"):
        ours(folder).save_pretrained(tmp_path / "out", safe_serialization=False)
    with pytest.raises(RequestError, match="max_shard_size: got 'much'"):
        ours(folder).save_pretrained(tmp_path / "out", "much")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CheckpointError, match="out"):
        ours(folder).save_pretrained(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"


class Adapter(torch.nn.Module):
    """A low-rank update around a matrix, as PEFT makes them."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = torch.nn.Linear(base_layer.in_features, 2, bias=False, dtype=torch.float32)
        self.lora_B = torch.nn.Linear(2, base_layer.out_features, bias=False, dtype=torch.float32)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


@pytest.mark.parametrize("name", ["blocks.1.att.key", "head"])
def test_a_model_with_an_unmerged_adapter_is_not_saved(name, folder, tmp_path):
    """Whatever library the adapter is of: only the matrix beneath it would be written."""
    mine = ours(folder).train()
    matrix = mine.get_submodule(name)
    mine.set_submodule(name, Adapter(matrix))
    message = rf"2 parameters .* such as {name}\.lora_A\.weight,.*merge_and_unload"
    with pytest.raises(RequestError, match=message) as raised:
        mine.save_pretrained(tmp_path / "out")
    assert "\n" not in str(raised.value)
    with pytest.raises(RequestError, match="merge_and_unload"):
        mine.push_to_hub("owner/name")
    assert not (tmp_path / "out").exists()
    mine.set_submodule(name, matrix)
    mine.save_pretrained(tmp_path / "out")


def test_a_parametrized_matrix_is_saved_as_it_is_used(folder, tmp_path):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    mine = ours(folder).train()
    torch.nn.utils.parametrize.register_parametrization(mine.head, "weight", Doubled())
    mine.save_pretrained(tmp_path / "out")
    ids = random_ids(1, 5)
    with torch.no_grad():
        assert difference(ours(tmp_path / "out")(ids).logits, 2 * ours(folder)(ids).logits) < 1e-5


def test_a_wide_time_mixing_that_transformers_cannot_run_gives_a_notice(tmp_path, caplog):
    """Written by `save_pretrained` or by a conversion, it is one line; and transformers does fail."""
    narrow = Shape(n_layer=2, n_embd=32, n_att=48, n_ffn=128, n_vocab=50)
    folder = folder_of(tmp_path, narrow)
    for write in (ours(folder).save_pretrained, lambda output: to_hugging_face(folder, output)):
        caplog.clear()
        write(tmp_path / "out")
        (message,) = [record.message for record in caplog.records if record.name == "rwkv_engine"]
        assert "time mixing is 48 wide and the model 32" in message
        assert "RwkvForCausalLM of transformers fails" in message
        assert "\n" not in message
    with pytest.raises(RuntimeError, match="must match"):
        theirs(tmp_path / "out").generate(random_ids(1, 3), max_new_tokens=2)
    assert ours(tmp_path / "out").generate(random_ids(1, 3), max_new_tokens=2).shape == (1, 5)


def test_there_is_no_notice_for_models_that_transformers_can_run(folder, tmp_path, caplog):
    ours(folder).save_pretrained(tmp_path / "out")
    to_hugging_face(folder, tmp_path / "converted")
    assert not caplog.records


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("5GB", 5 * 10**9),
        ("500 mb", 5 * 10**8),
        ("1GiB", 2**30),
        (1234, 1234),
        ("7KB", 7000),
        ("9B", 9),
        ("0.5MB", 500_000),
    ],
)
def test_shard_sizes(size, expected):
    assert bytes_of(size) == expected


@pytest.mark.parametrize("size", ["", "0", "5", "-1GB", "0.0001KB", "GB", 0, None])
def test_invalid_shard_sizes_are_refused(size):
    with pytest.raises(RequestError, match="max_shard_size: got"):
        bytes_of(size)


def test_the_files_pushed_to_the_hub_are_those_saved(folder, tmp_path, monkeypatch):
    sent = {}

    def upload(folder, repo_id, **options):
        sent.update({path.name: path.read_bytes() for path in folder.iterdir()}, repo_id=repo_id, **options)
        return "https://hub/owner/name"

    monkeypatch.setattr("rwkv_engine.hub.upload.upload", upload)
    mine = ours(folder)
    assert mine.push_to_hub("owner/name", token="t", private=True, commit_message="m") == "https://hub/owner/name"
    mine.save_pretrained(tmp_path / "out")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    options = {"repo_id": "owner/name", "token": "t", "private": True, "revision": None, "message": "m"}
    assert sent == saved | options
