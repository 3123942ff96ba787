"""Layers whose parameters the kernels keep: the bits of the operator, and never those of other parameters."""

from __future__ import annotations

import copy
import pickle
import weakref

import oracle
import oracle7
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rwkv_engine import Checkpoint, Strategy
from rwkv_engine.core.layer_states import LayerStates
from rwkv_engine.core.state import State
from rwkv_engine.models import prepared, rwkv4, rwkv7
from rwkv_engine.runtime import load_model

MODULES = {4: rwkv4, 7: rwkv7}


@pytest.fixture(params=[4, 7])
def version(request) -> int:
    return request.param


@pytest.fixture
def model(version, tmp_path):
    of_version = {
        4: lambda: oracle.random_weights(oracle.Shape(3, 40, 56, 100, 21)),
        7: lambda: oracle7.random_weights(oracle7.Shape(3, 3, 32, 100, 21, (5, 3, 7, 18))),
    }
    torch.save({name: torch.as_tensor(value) for name, value in of_version[version]().items()}, tmp_path / "m.pth")
    loaded = load_model(Checkpoint.open(tmp_path / "m.pth"), Strategy.parse("cpu fp32i8"))
    if not loaded.layers[0].is_packed:
        pytest.skip("needs compiled kernels: without them no matrices are packed")
    return loaded


def decode(model, rows: int = 1, slots: list[int] | None = None, before: list[int] | None = None) -> list[torch.Tensor]:
    """The logits of a few tokens, and the state after them."""
    generator = torch.Generator().manual_seed(rows)
    state = State.initial(model.config, rows)
    for field in state.fields.values():
        field.copy_(torch.rand(field.shape, generator=generator))
    places = [None if given is None else torch.tensor(given) for given in (slots, before)]
    batch = rows if slots is None else len(slots)
    with torch.no_grad():
        logits = [model.step(torch.arange(i, i + batch), LayerStates(state), *places) for i in range(3)]
    return [*logits, *state.fields.values()]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture
def calls(version, monkeypatch) -> list[int]:
    """The numbers of parameters that the operator has been given."""
    found: list[int] = []
    module, name = MODULES[version], f"blocks{version}_step"
    operator = getattr(module, name)
    monkeypatch.setattr(module, name, lambda step: found.append(len(step.parameters)) or operator(step))
    return found


@pytest.mark.parametrize(
    ("rows", "slots", "before"), [(1, None, None), (3, None, None), (6, [5, 0, 2], None), (6, [5, 0, 2], [3, 5, 2])]
)
def test_the_bits_are_those_of_the_operator(rows, slots, before, model, version, calls, monkeypatch):
    ours = decode(model, rows, slots, before)
    assert not calls, "the operator is not called"
    monkeypatch.setattr(MODULES[version], "whole_fields", lambda *_: None)
    assert same(ours, decode(model, rows, slots, before))
    assert len(calls) == 3


def test_what_it_cannot_serve_takes_the_operator(model, calls):
    expected = decode(model)
    state = State.initial(model.config, 2)
    with torch.no_grad():
        model.step(torch.tensor([1]), list(LayerStates(state.rows(slice(0, 1)))))
        assert len(calls) == 1, "layers one by one"
        apart = State(
            {name: field.transpose(0, 1).contiguous().transpose(0, 1) for name, field in state.fields.items()},
            state.position,
        )
        model.step(torch.tensor([1, 2]), LayerStates(apart))
        assert len(calls) == 2, "fields whose rows are not contiguous"
        with FlopCounterMode(display=False):
            model.step(torch.tensor([1]), LayerStates(State.initial(model.config, 1)))
        assert len(calls) == 3, "somebody watches the operators"
    assert same(expected, decode(model))


@pytest.mark.parametrize("told", ["the model", "one layer"])
def test_other_parameters_replace_it(told, model):
    before = decode(model)
    block = model.layers[1]
    block.ln1.weight = torch.nn.Parameter(block.ln1.weight * 2, requires_grad=False)
    (model if told == "the model" else block).forget()
    assert not same(before, decode(model))
    block.ln1.weight.mul_(0.5)  # in place: nothing needs to be told
    assert same(before, decode(model))


def test_it_is_neither_copied_nor_stored_and_forget_drops_it(model):
    expected = decode(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(expected, decode(other))
    first = weakref.ref(model.layers[0])
    assert first() in prepared._known
    model.forget()
    assert first() not in prepared._known


def test_arguments_that_do_not_fit_are_named(model, version):
    decode(model)
    layers = prepared._known[model.layers[0]][1]
    fields = list(State.initial(model.config, 2).fields.values())
    x = torch.zeros(2, model.config.n_embd)
    first = [torch.zeros(2, model.config.n_att)] if version == 7 else []
    kept = [field.clone() for field in fields]
    for change, message in [
        ((x[:, 1:], *first, fields, None, None), "x: expected contiguous"),
        ((x.double(), *first, fields, None, None), "x: expected float32"),
        ((x, *first, fields[1:], None, None), "state: expected . fields"),
        ((x, *first, [fields[0][:1], *fields[1:]], None, None), "field 0: expected contiguous"),
        ((x, *first, [fields[0][:, :2].contiguous(), *fields[1:]], None, None), "field 0: expected contiguous"),
        ((x, *first, [fields[0].double(), *fields[1:]], None, None), "state: expected float32"),
        ((x, *first, fields, torch.tensor([0, 2]), None), "slots: row 1 has slot 2, expected one of the 2 rows"),
        ((x, *first, fields, None, torch.tensor([0, 1])), "before: expected none without slots"),
        ((x, *first, fields, torch.tensor([0, 1]), torch.tensor([-1, 0])), "before: row 0 has slot -1"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            layers.step(*change)
    if version == 7:
        with pytest.raises(RuntimeError, match="first: expected contiguous"):
            layers.step(x, first[0][:, 1:], fields, None, None)
    assert same(kept, fields), "nothing has been written"


def test_layer_states_are_views(model):
    state = State.initial(model.config, 2)
    states = LayerStates(state)
    assert len(states) == len(list(states)) == model.config.n_layer
    assert states[:] is states
    assert [layer["att_shift"].data_ptr() for layer in states[1:]] == [
        layer["att_shift"].data_ptr() for layer in list(state.layers())[1:]
    ]
