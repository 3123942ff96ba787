"""Prompts that are read in the steps of running texts change no text, no log-probability and no state."""

from __future__ import annotations

import pytest
import torch
from generation.test_scheduler import PARAMS, V, check, finish, free_slots
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine import RWKV, StateCache
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler


@pytest.fixture(scope="module")
def engine(each_version):
    engine = RWKV.from_pretrained(each_version, "cpu fp32i8").engine
    if not engine.model.steps_as_it_reads:
        pytest.skip("needs compiled kernels: without them prompts are read by themselves")
    return engine


def counted_rows(scheduler, monkeypatch):
    """A list to which the number of rows of each later step is appended."""
    decoder, rows = scheduler._steps._running._decoder, []
    step = decoder.step
    monkeypatch.setattr(decoder, "step", lambda ids, *others: rows.append(len(ids)) or step(ids, *others))
    return rows


arrivals = st.lists(
    st.tuples(
        st.integers(1, 90),  # tokens of the prompt
        st.integers(0, 12),  # of which so many are those of every other prompt
        st.integers(1, 20),  # new tokens
        st.integers(0, len(PARAMS) - 1),
        st.integers(0, 3),  # steps before it arrives
        st.sampled_from([0, 0, 4]),  # drafts
        st.booleans(),  # continues a state
        st.booleans(),  # is watched
        st.integers(1, 2),  # samples
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    arrivals, st.sampled_from([1, 3, 16, 33, 40]), st.integers(1, 99), st.integers(1, 40), st.booleans(), st.randoms()
)
def test_every_text_is_what_it_is_alone(engine, arrivals, slots, chunk, budget, caches, rng):
    cache = StateCache(2**20) if caches else None
    scheduler = Scheduler(engine.model, slots, chunk, budget, turn=5, cache=cache)
    _, earlier = engine.forward(torch.tensor([[1, 2, 3]]))
    requests, checks = [], []
    for seed, (n_prompt, common, n, which, steps, drafts, continues, watched, samples) in enumerate(arrivals):
        for _ in range(steps):
            scheduler._take_orders()
            scheduler._steps.step()
        params, state = SamplingParams(**PARAMS[which], seed=seed), earlier if continues else None
        prompt = [i % 5 if i < common else rng.randrange(V) for i in range(n_prompt)]
        for sample in range(samples):
            sampler = Sampler(SamplingParams(**PARAMS[which], seed=seed, drafts=drafts))
            requests.append(Request(prompt, sampler, n, state, sample))
            requests[-1].is_watched = watched
            checks.append((params, state))
            scheduler.add(requests[-1])
    finish(scheduler, requests)
    assert free_slots(scheduler)
    for each, (params, state) in zip(requests, checks, strict=True):
        check(engine, each, params, state)


def test_short_prompts_fill_the_steps_of_running_texts(engine, monkeypatch):
    """All tokens of many texts, in as few steps as they fit into."""
    monkeypatch.setattr(engine.model, "read", lambda *_: 1 / 0)
    scheduler = Scheduler(engine.model)
    rows = counted_rows(scheduler, monkeypatch)
    requests = [Request([i // 30] + [i % 30] * 14, Sampler(SamplingParams(drafts=0, seed=i)), 16) for i in range(60)]
    for each in requests:
        each.is_watched = False
        scheduler.add(each)
    finish(scheduler, requests)
    assert not any(each.error for each in requests)
    assert sum(rows) == 60 * (15 + 15)
    assert max(rows) == 32
    assert len(rows) <= sum(rows) / 32 + 40  # few are not full but for those of the last texts


def test_a_watched_text_shares_each_step_with_the_budget_of_long_prompts(engine, monkeypatch):
    scheduler = Scheduler(engine.model, budget=5)
    rows = counted_rows(scheduler, monkeypatch)
    running, *entering = (Request([n] * n, Sampler(SamplingParams(drafts=0, seed=7)), 60) for n in (1, 30, 20))
    scheduler.add(running)
    scheduler.wait(lambda: running.tokens)
    for each in entering:
        scheduler.add(each)
    scheduler.wait(lambda: entering[0].tokens)
    assert rows == [1] + [6] * 6
    finish(scheduler, [running, *entering])
    for each in (running, *entering):
        check(engine, each, SamplingParams(seed=7))


def test_there_is_room_for_a_prompt_beside_many_texts(engine, monkeypatch):
    scheduler = Scheduler(engine.model, budget=9)
    rows = counted_rows(scheduler, monkeypatch)
    running = [Request([i], Sampler(SamplingParams(drafts=0, seed=7)), 9) for i in range(31)]
    for each in running:
        scheduler.add(each)
    scheduler.wait(lambda: running[0].tokens)
    entering = Request([1, 2, 3] * 3, Sampler(SamplingParams(drafts=0, seed=7)), 9)
    scheduler.add(entering)
    scheduler.wait(lambda: entering.tokens)
    assert rows == [31, 23 + 9, 31 - 23]
    finish(scheduler, [*running, entering])
    for each in (*running, entering):
        check(engine, each, SamplingParams(seed=7))


def test_long_prompts_are_read_by_themselves(engine, monkeypatch):
    scheduler = Scheduler(engine.model)
    rows = counted_rows(scheduler, monkeypatch)
    each = Request([1] * 100, Sampler(SamplingParams(drafts=0)), 3)
    scheduler.add(each)
    finish(scheduler, [each])
    assert rows == [1, 1]


def test_many_prompts_are_read_by_themselves_where_large_products_are_fast(engine, monkeypatch):
    monkeypatch.setattr("rwkv_engine.native.ways.int8_way", lambda _: "amx")
    for n, expected in ((1, [20, 1]), (3, [3, 3])):
        scheduler = Scheduler(engine.model)
        rows = counted_rows(scheduler, monkeypatch)
        requests = [Request([i] * 20, Sampler(SamplingParams(drafts=0, seed=7)), 3) for i in range(n)]
        for each in requests:
            scheduler.add(each)
        finish(scheduler, requests)
        assert rows[:2] == expected
        for each in requests:
            check(engine, each, SamplingParams(seed=7))
