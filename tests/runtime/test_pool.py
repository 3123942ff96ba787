"""States in slots of a pool: values go in and come out, neighbours stay as they are."""

from __future__ import annotations

from dataclasses import replace

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from states import FIELDS

from rwkv_engine import RWKV, RequestError, State
from rwkv_engine.runtime import StatePool

SHAPE = Shape(n_layer=3, n_embd=40, n_att=56, n_ffn=72, n_vocab=101)


@pytest.fixture
def model(tmp_path):
    return RWKV.from_pretrained(save_pth(oracle.random_weights(SHAPE), tmp_path / "m.pth")).engine.model


def random_state(model, batch: int, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    state = State.initial(model.config, batch)
    fields = {name: torch.randn(getattr(state, name).shape, generator=generator) for name in FIELDS}
    position = torch.randint(0, 2**40, (batch,), generator=generator)
    return State(fields, position, model.fingerprint)


def assert_equal(one: State, other: State) -> None:
    for name in (*FIELDS, "position"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.fingerprint == other.fingerprint


def test_a_pool_returns_the_states_it_was_given(model):
    pool = StatePool(model, 4)
    first, second = random_state(model, 1, 1), random_state(model, 3, 2)
    slots = pool.take(first) + pool.take(second)
    assert sorted(slots) == [0, 1, 2, 3]
    assert pool.dummy == 4
    assert_equal(pool.read(slots[:1]), first)
    assert_equal(pool.read(slots[1:]), second)
    backwards = pool.read(slots[:0:-1])
    assert torch.equal(backwards.wkv_max, second.wkv_max.flip(0))
    assert torch.equal(backwards.position, second.position.flip(0))


def test_loading_a_slot_leaves_the_others_and_what_was_read(model):
    pool = StatePool(model, 3)
    state, new = random_state(model, 3), random_state(model, 1, 1)
    slots = pool.take(state)
    read = pool.read(slots)
    pool.load(slots[1:2], new)
    assert_equal(read, state)
    assert_equal(pool.read(slots[1:2]), new)
    after = pool.read(slots)
    assert torch.equal(after.att_shift[[0, 2]], state.att_shift[[0, 2]])
    assert after.position.tolist() == [state.position[0], new.position[0], state.position[2]]


def test_the_addresses_stay_and_layers_are_views(model):
    pool = StatePool(model, 2)
    before = [layer[name].data_ptr() for layer in pool.layers for name in FIELDS]
    pool.take(random_state(model, 2))
    assert [layer[name].data_ptr() for layer in pool.layers for name in FIELDS] == before
    assert len(pool.layers) == SHAPE.n_layer
    pool.layers[2]["wkv_num"][1] = 7.0
    state = pool.read([1])
    assert (state.wkv_num[0, 2] == 7).all()
    assert not (state.wkv_num[0, 1] == 7).any()


def test_slots_run_out_and_come_back(model):
    pool = StatePool(model, 3)
    pool.take(random_state(model, 2))
    with pytest.raises(RequestError, match="needs 2 slots of the pool, but 1 of 3 are free"):
        pool.take(random_state(model, 2))
    pool.free([1])
    assert sorted(pool.take(random_state(model, 2))) == [1, 2]


def test_a_foreign_state_takes_no_slot(model):
    pool = StatePool(model, 1)
    foreign = replace(random_state(model, 1), fingerprint="other")
    with pytest.raises(RequestError, match="belongs to another model"):
        pool.take(foreign)
    assert pool.take(random_state(model, 1)) == [0]
