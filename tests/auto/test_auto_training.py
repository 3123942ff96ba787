"""Training: gradients equal those of transformers, weights are unpacked once, a fine-tune lowers the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import oracle
import pytest
import torch
from auto_models import SHAPE, difference, folder_of, ours, random_ids, theirs
from checkpoint_files import as_torch, save_packed, save_pth
from oracle import Shape
from states import FIELDS
from torch.nn import functional as F

from rwkv_engine import RWKV, CheckpointError, StrategyError
from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.models.weights import Dense, InputMajor


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path)


def gradients(mine) -> dict[str, torch.Tensor]:
    """By the names transformers has."""
    return {Rwkv4Config.to_hugging_face(name): p.grad for name, p in mine.named_parameters()}


def compare(mine, peer) -> None:
    """Every parameter's gradient, to 1e-4 of its largest number."""
    found = gradients(mine)
    expected = {name: p.grad for name, p in peer.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert difference(found[name].view_as(gradient), gradient) < 1e-4, name


@pytest.mark.parametrize("shape", [SHAPE, Shape(2, 32, 48, 128, 50)], ids=str)
def test_every_gradient_equals_that_of_transformers(shape, tmp_path):
    folder = folder_of(tmp_path, shape)
    mine, peer = ours(folder).train(), theirs(folder).train()
    ids = random_ids(3, 30, shape)
    labels = ids.clone()
    labels[1, 4:20] = -100
    for model in (mine, peer):
        model(ids, labels=labels).loss.backward()
    compare(mine, peer)


def test_gradients_flow_through_a_carried_state(folder):
    """Two halves with the state between them are the whole text, but for what the border does not predict."""
    mine, peer = ours(folder), theirs(folder).train()
    ids = random_ids(2, 24)
    first = mine(ids[:, :10], labels=ids[:, :10], use_cache=True, num_items_in_batch=1)
    second = mine(ids[:, 10:], labels=ids[:, 10:], state=first.state, num_items_in_batch=1)
    (first.loss + second.loss).backward()
    labels = ids.clone()
    labels[:, 10] = -100
    logits = peer(ids).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").backward()
    compare(mine, peer)


def test_backpropagation_ends_where_a_state_is_detached(folder):
    """As if the state had come from another program, as numbers."""
    mine, other = ours(folder), ours(folder)
    ids = random_ids(2, 24)
    state = mine(ids[:, :10], use_cache=True).state
    assert state.att_shift.requires_grad
    mine(ids[:, 10:], labels=ids[:, 10:], state=state.detach()).loss.backward()
    with torch.no_grad():
        numbers = other(ids[:, :10]).state
    other(ids[:, 10:], labels=ids[:, 10:], state=numbers).loss.backward()
    carried = ours(folder)
    state = carried(ids[:, :10], use_cache=True).state
    carried(ids[:, 10:], labels=ids[:, 10:], state=state).loss.backward()
    for (name, p), q in zip(mine.named_parameters(), other.parameters(), strict=True):
        assert difference(p.grad, q.grad) < 1e-4, name
    assert difference(carried.head.weight.grad, mine.head.weight.grad) < 1e-4, "the head sees no difference"
    first = [m.blocks[0].att.key.weight.grad for m in (mine, carried)]
    assert difference(*first) > 1e-2, "the first layer does"


def test_a_state_can_be_trained_alone(folder):
    mine = ours(folder).requires_grad_(False)
    ids = random_ids(1, 8)
    with torch.no_grad():
        state = mine(ids).state
    assert not mine(ids).logits.requires_grad
    assert not mine.is_trainable
    state = replace(state, fields={n: field.clone().requires_grad_() for n, field in state.fields.items()})
    mine(ids, labels=ids, state=state).loss.backward()
    assert all(getattr(state, name).grad.abs().max() > 0 for name in FIELDS if name != "wkv_max")
    assert all(p.grad is None and not p.requires_grad for p in mine.parameters())


@pytest.mark.slow
def test_a_short_fine_tune_lowers_the_loss():
    """Of the embedded model, on a few sentences it does not know."""
    mine, text = ours("tales"), RWKV.from_pretrained("tales")
    story = "The engine of the small grey robot counted tokens all night, and no token was ever lost. " * 3
    ids = torch.tensor([text.tokenizer.encode(story)])
    optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-3)
    mine.train()
    losses = []
    for _ in range(8):
        loss = mine(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    mine.eval()
    with torch.no_grad():
        after = mine(ids, labels=ids).loss.item()
    assert after < losses[-1] * 1.2
    engine = mine.engine.forward(ids, full_output=True)[0]
    assert F.cross_entropy(engine[0, :-1], ids[0, 1:]).item() == pytest.approx(after, rel=1e-4)


# Packed and plain weights.


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: list(m.parameters()),
        lambda m: dict(m.named_parameters()),
        lambda m: m.state_dict(),
        lambda m: m.train(),
        lambda m: m(random_ids(1, 3)),
        lambda m: m.rwkv(random_ids(1, 3)),
        lambda m: m.requires_grad_(),
        lambda m: list(torch.nn.ModuleList([m]).parameters()),
        lambda m: torch.nn.ModuleDict({"m": m}).state_dict(),
    ],
    ids=[
        "parameters",
        "named_parameters",
        "state_dict",
        "train",
        "call",
        "rwkv",
        "requires_grad_",
        "around",
        "around 2",
    ],
)
def test_unpacked_weights_equal_those_of_the_file(ask, folder, capsys):
    mine = ours(folder)
    assert isinstance(mine.blocks[0].ffn.value, InputMajor), "kernels are in use"
    with torch.no_grad():
        mine(random_ids(1, 3))
        mine.eval().num_parameters()
        _ = mine.device, mine.dtype, repr(mine)
        mine.to("cpu")
    assert not mine.is_trainable
    ask(mine)
    assert mine.is_trainable
    assert "generation is slower" in capsys.readouterr().err
    weights = as_torch(oracle.random_weights(SHAPE))
    named = dict(mine.named_parameters())
    assert list(named) == list(mine.state_dict())
    assert named.keys() == mine.core.config.tensor_shapes().keys()
    for name, tensor in weights.items():
        assert torch.equal(named[name], tensor.view_as(named[name])), name
        assert named[name].requires_grad
    assert all(isinstance(m, Dense) for m in (mine.head, mine.blocks[0].ffn.value))
    ask(mine)
    assert "generation" not in capsys.readouterr().err, "it is said once"


def test_generation_uses_the_trained_weights(folder):
    mine = ours(folder)
    ids = random_ids(1, 6)
    engine = mine.engine
    before = engine.forward(ids)[0]
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    mine(ids, labels=ids).loss.backward()
    optimizer.step()
    after = mine.engine.forward(ids)[0]
    assert difference(after, before) > 1e-3
    with torch.no_grad():
        assert difference(mine(ids).logits[:, -1], after) < 1e-5
    assert torch.equal(engine.forward(ids)[0], after), "an engine taken before is no other model"


def test_a_frozen_model_stays_packed(folder):
    mine = ours(folder).requires_grad_(False)
    output = mine(random_ids(1, 3), labels=random_ids(1, 3))
    assert not output.loss.requires_grad
    assert not mine.is_trainable
    assert not any(p.requires_grad for p in mine.parameters())
    assert mine.is_trainable
    assert mine.num_parameters(only_trainable=True) == 0
    assert mine.requires_grad_()(random_ids(1, 3)).logits.requires_grad
    assert mine.num_parameters(only_trainable=True) == mine.num_parameters()


@pytest.mark.parametrize("names", ["original", "hugging face", "around"])
def test_load_state_dict(names, folder, tmp_path):
    weights = as_torch(oracle.random_weights(SHAPE, 1))
    mine, expected = ours(folder), ours(save_pth(oracle.random_weights(SHAPE, 1), tmp_path / "o.pth"))
    ids = random_ids(1, 5)
    mine.engine.forward(ids)
    if names == "hugging face":
        weights = {Rwkv4Config.to_hugging_face(name): tensor for name, tensor in weights.items()}
    if names == "around":
        weights = {f"0.{Rwkv4Config.to_hugging_face(name)}": tensor for name, tensor in weights.items()}
        torch.nn.Sequential(mine).load_state_dict(weights)
    else:
        assert str(mine.load_state_dict(weights)) == "<All keys matched successfully>"
    assert difference(mine.engine.forward(ids)[0], expected.engine.forward(ids)[0]) < 1e-5
    with pytest.raises(CheckpointError, match=r"state dict: Missing.*head\.weight.*; is it another model's") as raised:
        mine.load_state_dict({name: t for name, t in mine.state_dict().items() if "head" not in name})
    assert "\n" not in str(raised.value)


def test_a_saved_state_dict_is_a_checkpoint(folder, tmp_path):
    mine = ours(folder, dtype="bfloat16")
    torch.save(mine.state_dict(), tmp_path / "m.pth")
    ids = random_ids(1, 5)
    again, first = ours(tmp_path / "m.pth", dtype="auto"), ours(folder, dtype="bfloat16")
    assert torch.equal(again.engine.forward(ids)[0], first.engine.forward(ids)[0])
    assert again.core.fingerprint != first.core.fingerprint or again.dtype == first.dtype


def test_training_does_not_write_to_a_mapped_file(tmp_path):
    """Nor does what is trained depend on it any more."""
    path = save_packed(oracle.random_weights(SHAPE), tmp_path / "m.safetensors", "cpu fp32")
    before = path.read_bytes()
    mine, ids = ours(path), random_ids(1, 5)
    expected = mine.train().engine.forward(ids)[0]
    with open(path, "r+b") as file:
        file.write(bytes(len(before)))
    assert torch.equal(mine.engine.forward(ids)[0], expected)
    path.write_bytes(before)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    mine(ids, labels=ids).loss.backward()
    optimizer.step()
    assert path.read_bytes() == before
    assert difference(mine.engine.forward(ids)[0], ours(path).engine.forward(ids)[0]) > 1e-3


@pytest.mark.parametrize(
    "train",
    [
        lambda m: m.train(),
        lambda m: m.requires_grad_(),
        lambda m: m.state_dict(),
        lambda m: m.load_state_dict({}),
        lambda m: m(random_ids(1, 3), labels=random_ids(1, 3)).loss.backward(),
        lambda m: m(random_ids(1, 3)).logits.sum().backward(),
        lambda m: m.rwkv(random_ids(1, 3)).last_hidden_state.sum().backward(),
    ],
    ids=["train", "requires_grad_", "state_dict", "load_state_dict", "loss", "logits", "rwkv"],
)
def test_training_int8_weights_is_refused(train, folder):
    mine = ours(folder, load_in_8bit=True)
    with pytest.raises(StrategyError, match="quantised weights have no gradient") as raised:
        train(mine)
    assert "\n" not in str(raised.value)
    assert not mine.training


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains(precision, folder):
    """Beside weights of 16 bits activations are rounded to their type, forth and back: the error of plain torch."""
    ids = random_ids(2, 20)
    exact = ours(folder)
    exact(ids, labels=ids).loss.backward()
    mine = ours(folder, dtype=precision)
    mine(ids, labels=ids).loss.backward()
    assert {p.dtype for p in mine.parameters() if p.ndim > 1} == {getattr(torch, precision)}
    peer = theirs(folder, dtype=getattr(torch, precision)).train()
    peer(ids, labels=ids).loss.backward()
    theirs_by_name = {name: p.grad for name, p in peer.named_parameters()}
    errors, bounds = [], []
    for (name, p), q in zip(mine.named_parameters(), exact.parameters(), strict=True):
        scale = q.grad.norm()
        errors.append(float((p.grad.float() - q.grad).norm() / scale))
        other = theirs_by_name[Rwkv4Config.to_hugging_face(name)].float().view_as(q.grad)
        bounds.append(float((other - q.grad).norm() / scale))
    assert math.dist(errors, [0] * len(errors)) < 2 * math.dist(bounds, [0] * len(bounds))


def test_autocast(folder):
    """Products in bfloat16 over float32 parameters, as trainers do."""
    mine, ids = ours(folder), random_ids(2, 20)
    mine(ids, labels=ids).loss.backward()
    exact = [p.grad.clone() for p in mine.parameters()]
    mine.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = mine(ids, labels=ids)
    output.loss.backward()
    assert output.logits.dtype == torch.float32
    errors = [float((p.grad - q).norm() / q.norm()) for p, q in zip(mine.parameters(), exact, strict=True)]
    assert 0 < max(errors) < 0.1
