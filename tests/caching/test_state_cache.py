"""What a prompt gets from a cache is what it gets alone, bit by bit; a cache keeps to its budget and its owners."""

from __future__ import annotations

import random
import threading
from contextlib import suppress

import pytest
import torch
from generation.alone import alone
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine import RWKV, RequestError
from rwkv_engine.caching import StateCache
from rwkv_engine.caching.state_cache import NEAR
from rwkv_engine.caching.state_memory import entry_bytes
from rwkv_engine.core import State
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler

V = 33
LARGE = 10**8


@pytest.fixture(scope="module")
def engine(each_version):
    return RWKV.from_pretrained(each_version).engine


@pytest.fixture
def reads(engine, monkeypatch):
    """The numbers of tokens that the model reads."""
    return counted_reads(engine.model, monkeypatch)


def counted_reads(model, monkeypatch):
    read, seen = model.read, []

    def counted(tokens, state, **options):
        seen.append(tokens.numel())
        return read(tokens, state, **options)

    monkeypatch.setattr(model, "read", counted)
    return seen


def request(prompt, n=3, owner="", state=None, sample=0, **options):
    return Request(prompt, Sampler(SamplingParams(**{"seed": 1, **options})), n, state, sample, owner)


def finish(scheduler, *requests):
    scheduler.wait(lambda: all(each.finish_reason for each in requests))


def run(scheduler, *prompts, **options):
    """Runs prompts one after the other, and returns their requests."""
    requests = [request(prompt, **options) for prompt in prompts]
    for each in requests:
        scheduler.add(each)
        finish(scheduler, each)
    return requests


def same_state(got, expected):
    assert torch.equal(got.position, expected.position)
    for name, field in expected.fields.items():
        assert torch.equal(got.fields[name], field), name


def check(engine, each):
    """Compares a request that has ended with what it gets without a scheduler, and without a cache."""
    expected = alone(engine, each.prompt, each.sampler.params, each.max_new_tokens, None, each.sample)
    assert each.error is None
    assert each.tokens == expected.tokens
    assert each.logprobs == expected.logprobs
    state = each.state
    if each.unread:
        _, state = engine.forward(torch.tensor([each.unread]), state)
    same_state(state, expected.state)


def text(rng, n):
    return tuple(rng.randrange(V) for _ in range(n))


BASES = [text(random.Random(i), 120) for i in range(3)]
prompts = st.tuples(
    st.sampled_from(BASES), st.integers(0, 120), st.lists(st.integers(0, V - 1), min_size=1, max_size=40)
)
arrivals = st.lists(
    st.tuples(
        prompts.map(lambda parts: parts[0][: parts[1]] + tuple(parts[2])),
        st.integers(1, 5),  # new tokens
        st.sampled_from(["", "ann", "bob"]),
        st.integers(0, 6),  # steps before the next one arrives
        st.sampled_from(["run", "run", "run", "abort", "pin", "unpin", "clear"]),
    ),
    min_size=2,
    max_size=14,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    arrivals,
    st.sampled_from([LARGE, 60_000, 25_000, 0]),
    st.integers(1, 5),
    st.integers(1, 70),
    st.integers(1, 40),
    st.booleans(),
)
def test_prompts_get_what_they_get_alone(
    engine, tmp_path_factory, arrivals, memory_bytes, slots, chunk, budget, has_files
):
    folder = tmp_path_factory.mktemp("states") if has_files else None
    cache = StateCache(memory_bytes, folder, disk_bytes=60_000)
    scheduler = Scheduler(engine.model, slots, chunk, budget, turn=4, cache=cache)
    requests, pins = [], set()
    for prompt, n, owner, steps, what in arrivals:
        key = (prompt[: len(prompt) // 2 + 1], owner)
        if what == "pin":
            with suppress(RequestError):  # there may be no room
                cache.pin(*key)
                pins.add(key)
        elif what == "unpin" and pins:
            cache.unpin(*pins.pop())
        elif what == "clear":
            cache.clear()
        each = request(prompt, n, owner, sample=len(requests) % 2, logprobs=1)
        scheduler.add(each)
        requests.append(each)
        for _ in range(steps):
            scheduler._take_orders()
            scheduler._steps.step()
            assert cache.statistics.n_bytes <= memory_bytes
            assert cache.statistics.file_bytes <= 60_000
        if what == "abort":
            scheduler.abort(each)
    finish(scheduler, *requests)
    for each in requests:
        if each.finish_reason != "aborted":
            check(engine, each)
    consistent(cache)


def consistent(cache):
    """Counts again what the cache has counted."""
    memory = cache._memory
    nodes = [(owner, node) for owner, tree in memory._trees.items() for node in tree.nodes()]
    states = [node for _, node in nodes if node.state]
    assert memory.entries == len(states)
    assert memory.n_bytes == 4 * sum(len(node.label) for _, node in nodes) + sum(entry_bytes(n.state) for n in states)
    assert {node for node in states if not node.is_pinned} == memory._recent.keys()
    for owner, node in nodes:
        assert node.state or node.is_pinned or len(node.children) > 1
        assert node.parent.children[node.label[0]] is node
        if node.state:
            assert int(node.state.position) == node.depth
            assert memory._recent.get(node, owner) == owner


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu fp16", "cpu fp32i8", "cpu fp32i4"])
@pytest.mark.slow
def test_no_format_changes_a_bit(strategy, talker):
    model = RWKV.from_pretrained(talker.source, strategy)
    rng = random.Random(3)
    shared = [rng.randrange(2000) for _ in range(70)]
    scheduler = Scheduler(model.engine.model, chunk=32, budget=9, cache=StateCache())
    history = list(shared)
    for turn in range(4):  # a conversation, and others that begin like it
        others = [request([*shared[: 20 * turn + 5], *(rng.randrange(2000) for _ in range(n))], 4) for n in (1, 30)]
        each = request(history, 6, temperature=0.9)
        for one in (each, *others):
            scheduler.add(one)
        finish(scheduler, each, *others)
        for one in (each, *others):
            check(model.engine, one)
        history += [*each.tokens, *(rng.randrange(2000) for _ in range(5))]
    assert scheduler.cache.statistics.hits >= 6


def test_the_next_turn_reads_only_what_is_new(engine, reads):
    scheduler = Scheduler(engine.model, chunk=64, cache=StateCache())
    [first] = run(scheduler, text(random.Random(0), 200), n=9)
    assert sum(reads) == 200
    del reads[:]
    message = text(random.Random(1), 7)
    [second] = run(scheduler, (*first.prompt, *first.tokens, *message))
    assert reads == [9 + 7], "the answer is read again: with float32 weights steps give other bits than reading"
    check(engine, second)
    assert scheduler.cache.statistics.tokens_saved == 200
    assert scheduler.cache.statistics.hits == scheduler.cache.statistics.misses == 1


def test_with_int8_the_next_turn_begins_after_the_answer():
    tales = RWKV.from_pretrained("tales", "cpu fp32i8")
    if not tales.engine.model.steps_as_it_reads:
        pytest.skip("needs compiled kernels")
    scheduler = Scheduler(tales.engine.model, chunk=64, cache=StateCache())
    rng = random.Random(0)
    history = text(rng, 150)
    for turn in range(3):
        [each] = run(scheduler, history, n=20, temperature=0.9)
        n_read = len(history) - each.n_cached
        assert n_read == (150 if turn == 0 else 1 + 7), "the last token of an answer is not processed"
        check(tales.engine, each)
        history = (*history, *each.tokens, *text(rng, 7))


def test_what_prompts_begin_with_is_learnt_at_the_second(engine, reads):
    scheduler = Scheduler(engine.model, chunk=64, cache=StateCache())
    rng = random.Random(0)
    shared = text(rng, 100)
    for i, parts in enumerate([[64, 56], [36, 20], [20], [20]]):
        del reads[:]
        [each] = run(scheduler, (*shared, i, *text(rng, 19)))
        assert reads == parts
        check(engine, each)
    for parts in ([NEAR + 3, 1], [1], [1]):  # the same prompt again, of which the last token is always read
        del reads[:]
        [again] = run(scheduler, each.prompt)
        assert reads == parts
        check(engine, again)


def test_a_short_way_is_no_place_for_a_state(engine, reads):
    scheduler = Scheduler(engine.model, chunk=64, cache=StateCache())
    rng = random.Random(0)
    shared = text(rng, NEAR - 1)
    for _ in range(3):
        run(scheduler, (*shared, *rng.sample(range(V), 20)))
    assert reads == [NEAR - 1 + 20] * 3


def test_prompts_that_wait_for_each_other_share_what_they_begin_with(engine, reads):
    """The second is looked up when the first is read, not when it arrives."""
    scheduler = Scheduler(engine.model, chunk=50, cache=StateCache())
    rng = random.Random(0)
    shared = text(rng, 100)
    requests = [request((*shared, *text(rng, 10))) for _ in range(8)]
    for each in requests:
        scheduler.add(each)
    finish(scheduler, *requests)
    assert sum(reads) <= 110 + 60 + 6 * 20
    for each in requests:
        check(engine, each)


def test_samples_of_one_prompt_are_read_once_with_a_cache_too(engine, reads):
    scheduler = Scheduler(engine.model, chunk=64, cache=StateCache())
    prompt = text(random.Random(0), 100)
    run(scheduler, prompt)
    del reads[:]
    requests = [request((*prompt, 5, 6), sample=i) for i in range(5)]
    for each in requests:
        scheduler.add(each)
    finish(scheduler, *requests)
    assert reads == [2]
    for each in requests:
        check(engine, each)


def test_owners_share_nothing(engine, reads):
    scheduler = Scheduler(engine.model, chunk=64, cache=StateCache())
    prompt = text(random.Random(0), 100)
    both = [request(prompt, owner=owner) for owner in ("ann", "bob")]
    for each in both:
        scheduler.add(each)
    finish(scheduler, *both)
    assert sum(reads) == 200, "not even a pass over the weights, whose time would tell"
    del reads[:]
    run(scheduler, (*prompt, 1, 2), owner="eve")
    run(scheduler, (*prompt, 1, 2))
    assert sum(reads) == 2 * 102
    del reads[:]
    run(scheduler, (*prompt, 1, 2), owner="ann")
    assert reads == [2]


def test_only_prompts_without_a_state_are_kept(engine, reads):
    scheduler = Scheduler(engine.model, cache=StateCache())
    prompt = text(random.Random(0), 50)
    run(scheduler, prompt, state=engine.forward(torch.tensor([[3]]))[1])
    run(scheduler, prompt, state=State.initial(engine.model.config))
    run(scheduler, (4,))  # one token goes through a step
    assert scheduler.cache.statistics.entries == 0
    assert scheduler.cache.statistics.misses == 0
    del reads[:]
    run(scheduler, prompt)
    assert reads == [50]


def test_states_that_were_used_least_recently_make_room(engine):
    size = entry_bytes(State.initial(engine.model.config)) + 4 * 40
    scheduler = Scheduler(engine.model, cache=StateCache(3 * size))
    rng = random.Random(0)
    one, two, three, four = (text(rng, 40) for _ in range(4))
    run(scheduler, one, two, three)
    assert (scheduler.cache.statistics.entries, scheduler.cache.statistics.n_bytes) == (3, 3 * size)
    run(scheduler, (*one, 1))  # uses one, and takes the place of two
    assert scheduler.cache.statistics.evictions == 1
    for prompt, is_kept in ((one, True), (three, True), (two, False), (four, False)):
        state, _ = scheduler.cache.find((*prompt, 9), "")
        assert (state is not None) == is_kept
    consistent(scheduler.cache)


def test_what_is_pinned_stays(engine, reads):
    size = entry_bytes(State.initial(engine.model.config))
    scheduler = Scheduler(engine.model, cache=StateCache(4 * size))
    rng = random.Random(0)
    system = text(rng, 30)
    scheduler.cache.pin(system)
    run(scheduler, (*system, *text(rng, 9)))
    assert reads == [30, 9]
    run(scheduler, *(text(rng, 50) for _ in range(9)))
    del reads[:]
    [last] = run(scheduler, (*system, *text(rng, 9)))
    assert reads == [9]
    check(engine, last)
    scheduler.cache.clear()
    del reads[:]
    run(scheduler, (*system, *text(rng, 9)))
    assert reads == [30, 9], "a pin outlives its state"
    scheduler.cache.unpin(system)
    run(scheduler, *(text(rng, 50) for _ in range(9)))
    del reads[:]
    run(scheduler, (*system, *text(rng, 9)))
    assert reads == [39]
    consistent(scheduler.cache)


@pytest.mark.parametrize("is_there", [False, True])
def test_no_more_is_pinned_than_has_room(engine, reads, is_there):
    size = entry_bytes(State.initial(engine.model.config)) + 30 * 4
    scheduler = Scheduler(engine.model, cache=StateCache(2 * size + size // 2))
    rng = random.Random(0)
    systems = [text(rng, 30) for _ in range(3)]
    if is_there:
        run(scheduler, systems[2])
    scheduler.cache.pin(systems[0])
    scheduler.cache.pin(systems[1])
    scheduler.cache.pin(systems[1])
    with pytest.raises(RequestError, match="no room to pin"):
        scheduler.cache.pin(systems[2])
    run(scheduler, *((*system, 1, 2) for system in systems))
    del reads[:]
    run(scheduler, *((*system, 3, 4) for system in systems[:2]))
    assert reads == [2, 2], "what is pinned is kept"
    scheduler.cache.unpin(systems[0])
    scheduler.cache.pin(systems[2])
    consistent(scheduler.cache)


def test_a_state_that_is_there_can_be_pinned(engine, reads):
    size = entry_bytes(State.initial(engine.model.config))
    scheduler = Scheduler(engine.model, cache=StateCache(2 * size))
    rng = random.Random(0)
    system = text(rng, 30)
    run(scheduler, system)
    scheduler.cache.pin(system)
    run(scheduler, *(text(rng, 50) for _ in range(5)))
    del reads[:]
    run(scheduler, (*system, 1, 2))
    assert reads == [2]
    consistent(scheduler.cache)


def test_a_state_that_a_caller_changes_is_not_the_caches(engine):
    scheduler = Scheduler(engine.model, chunk=16, cache=StateCache())
    prompt = text(random.Random(0), 40)
    aborted = request(prompt)
    scheduler.add(aborted)
    scheduler.wait(lambda: len(aborted.unread) < 40)
    scheduler.abort(aborted)
    finish(scheduler, aborted)
    for state in (aborted.state, scheduler.cache.find(prompt, "").state):
        for field in state.fields.values():
            field.fill_(7)
    [each] = run(scheduler, prompt)
    check(engine, each)
    assert scheduler.cache.statistics.hits == 2


def test_a_cache_may_be_turned_off_while_a_prompt_is_read(engine):
    scheduler = Scheduler(engine.model, chunk=16, budget=4, cache=StateCache())
    running, each = request([1, 2], 30), request(text(random.Random(0), 40))
    for one in (running, each):
        scheduler.add(one)
        scheduler.wait(lambda one=one: one.tokens or 0 < len(one.unread) < 40)
    scheduler.cache = None
    finish(scheduler, running, each)
    for one in (running, each):
        check(engine, one)


def test_a_cache_has_one_model(engine, tales):
    cache = StateCache()
    Scheduler(engine.model, cache=cache)
    with pytest.raises(RequestError, match="the cache of another model, expected a StateCache of its own"):
        tales.state_cache = cache
    assert tales.state_cache is None


def test_wrong_arguments_are_refused(engine, tmp_path):
    for wrong, message in [
        ({"memory_bytes": -1}, "memory_bytes: got -1, expected an integer >= 0"),
        ({"disk_bytes": 0.5}, "disk_bytes: got 0.5"),
        ({"folder": 5}, "folder: got 5, expected the name of a folder"),
    ]:
        with pytest.raises(RequestError, match=message):
            StateCache(**wrong)
    cache = StateCache(20_000)
    with pytest.raises(RequestError, match="belongs to no model yet; assign it first"):
        cache.pin([1])
    scheduler = Scheduler(engine.model, cache=cache)
    for wrong, message in [
        ([], "tokens: got none"),
        ([V], "tokens: got the token id 33"),
        ("ab", "tokens: got 'ab'"),
        ([1] * 5000, "tokens: got 5000, and no room to pin"),
    ]:
        with pytest.raises(RequestError, match=message):
            cache.pin(wrong)
    with pytest.raises(RequestError, match="tokens: got 2 that are not pinned"):
        cache.unpin([1, 2])
    with pytest.raises(RequestError, match="owner: expected text"):
        request([1], owner=None)
    with pytest.raises(RequestError, match="state_cache: got 5, expected a StateCache, or None"):
        scheduler.cache = 5
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="cannot be the folder of a state cache"):
        scheduler.cache = StateCache(folder=tmp_path / "file")
    assert scheduler.cache is cache


def test_threads_that_use_one_cache(engine):
    cache = StateCache(60_000)
    scheduler = Scheduler(engine.model, slots=4, chunk=16, cache=cache)
    wrong = []

    def work(seed):
        rng = random.Random(seed)
        try:
            for _ in range(12):
                prompt = BASES[rng.randrange(3)][: rng.randrange(1, 100)] + text(rng, 3)
                pin = prompt[: len(prompt) // 2 + 1]
                owner = f"{rng.randrange(2)} {seed}"
                cache.pin(pin, owner)
                [each] = run(scheduler, prompt, owner=owner)
                check(engine, each)
                assert cache.statistics.n_bytes <= 60_000
                cache.unpin(pin, owner)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    consistent(cache)


def test_texts_of_a_model_with_a_cache(tales):
    prompts = [f"Once upon a time there was a king who had a castle and {n} sons. They" for n in (2, 3, 4)]
    expected = tales.generate(prompts, 10, seed=1, temperature=0.9)
    tales.state_cache = StateCache()
    try:
        for owner in ("", "ann"):
            assert tales.generate(prompts * 2, 10, seed=1, temperature=0.9, owner=owner) == expected * 2
        assert tales.generate([{"prompt": prompts[0], "owner": "ann"}], 10, seed=1, temperature=0.9) == expected[:1]
        assert tales.generate(prompts[0], 10, seed=1, temperature=0.9, owner="ann") == expected[0]
        assert "".join(tales.stream(prompts[0], 10, seed=1, temperature=0.9)) == expected[0]
        assert tales.state_cache.statistics.hits >= 1
    finally:
        tales.state_cache = None
