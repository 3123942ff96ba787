"""Requests join and leave at any time, and each gets the text, log-probabilities and state that it gets alone."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import weakref

import pytest
import torch
from generation.alone import alone
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine import RWKV, RequestError
from rwkv_engine.generation import Sampler, SamplingParams, TokenStream
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler, scheduler_of

V = 33
# All options at once would leave few tokens to choose from.
PARAMS = [
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"top_k": 5, "logprobs": 2},
    {"presence_penalty": 2.0, "frequency_penalty": 0.5, "penalty_decay": 0.9},
    {"logit_bias": {3: 2.0}, "banned_tokens": (4, 5), "min_p": 0.05},
    {"stop_tokens": (7, 8, 9), "logprobs": 0},
]


@pytest.fixture(scope="module")
def engine(each_version):
    return RWKV.from_pretrained(each_version).engine


def request(prompt, n, state=None, sample=0, **options):
    return Request(prompt, Sampler(SamplingParams(**options)), n, state, sample)


def finish(scheduler, requests):
    scheduler.wait(lambda: all(request.finish_reason for request in requests))


def state_after(engine, request):
    """That of a request that has ended."""
    if not request.unread:
        return request.state
    return engine.forward(torch.tensor([request.unread]), request.state)[1]


def check(engine, request, params, state=None):
    expected = alone(engine, request.prompt, params, request.max_new_tokens, state, request.sample)
    assert request.error is None
    assert (request.tokens, request.finish_reason) == (expected.tokens, expected.finish_reason)
    assert request.logprobs == expected.logprobs
    same_state(state_after(engine, request), expected.state)


def same_state(got, expected):
    assert torch.equal(got.position, expected.position)
    for name, field in expected.fields.items():
        assert torch.equal(got.fields[name], field), name


def free_slots(scheduler):
    pool = scheduler._steps._running._decoder.pool
    return sorted(pool._free) == list(range(pool.dummy))


arrivals = st.lists(
    st.tuples(
        st.integers(1, 40),  # tokens of the prompt
        st.integers(0, 30),  # new tokens
        st.integers(0, len(PARAMS) - 1),
        st.integers(0, 3),  # steps before it arrives
        st.booleans(),  # continues a state
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(arrivals, st.integers(1, 16), st.integers(1, 20), st.integers(1, 20), st.integers(1, 10), st.randoms())
def test_every_text_is_what_it_is_alone(engine, arrivals, slots, chunk, budget, turn, rng):
    scheduler = Scheduler(engine.model, slots, chunk, budget, turn)
    _, earlier = engine.forward(torch.tensor([[1, 2, 3]]))
    requests, checks = [], []
    for seed, (n_prompt, n, which, steps, continues) in enumerate(arrivals):
        for _ in range(steps):
            scheduler._take_orders()
            scheduler._steps.step()
        params = SamplingParams(**PARAMS[which], seed=seed)
        state = earlier if continues else None
        prompt = [rng.randrange(V) for _ in range(n_prompt)]
        requests.append(Request(prompt, Sampler(params), n, state, sample=seed % 3))
        checks.append((params, state))
        scheduler.add(requests[-1])
    finish(scheduler, requests)
    assert free_slots(scheduler)
    for each, (params, state) in zip(requests, checks, strict=True):
        if each.max_new_tokens:
            check(engine, each, params, state)


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu bf16", "cpu fp16", "cpu fp32i8", "cpu fp32i4"])
@pytest.mark.slow
def test_no_format_lets_a_text_see_its_company(strategy, talker):
    model = RWKV.from_pretrained(talker.source, strategy)
    rng = random.Random(1)
    scheduler = Scheduler(model.engine.model, slots=5, chunk=64, budget=7, turn=6)
    requests, params = [], []
    for seed in range(12):
        params.append(SamplingParams(seed=seed, temperature=0.9, top_p=0.95))
        prompt = [rng.randrange(2000) for _ in range(rng.choice([1, 2, 5, 40, 90]))]
        requests.append(Request(prompt, Sampler(params[-1]), rng.randrange(1, 25)))
        scheduler.add(requests[-1])
    finish(scheduler, requests)
    for each, of_text in zip(requests, params, strict=True):
        check(model.engine, each, of_text)


def test_samples_of_one_prompt_read_it_once(engine, monkeypatch):
    read, n_read = engine.model.read, []
    monkeypatch.setattr(
        engine.model, "read", lambda tokens, *a, **k: n_read.append(tokens.numel()) or read(tokens, *a, **k)
    )
    scheduler = Scheduler(engine.model, slots=8, chunk=16)
    prompt = [1, 2, 3, 4] * 6
    requests = [request(prompt, 9, sample=i, seed=3) for i in range(7)]
    _, state = engine.forward(torch.tensor([[9]]))
    other = request(prompt, 9, state, seed=3)
    for each in [*requests, other]:
        scheduler.add(each)
    finish(scheduler, [*requests, other])
    assert sum(n_read) == 2 * len(prompt)
    check(engine, other, SamplingParams(seed=3), state)
    for each in requests:
        check(engine, each, SamplingParams(seed=3))
    assert len({tuple(each.tokens) for each in requests}) == 7


def test_a_long_prompt_does_not_stop_running_texts(engine):
    scheduler = Scheduler(engine.model, budget=10)
    running = [request([1, 2], 200, seed=i) for i in range(3)]
    for each in running:
        scheduler.add(each)
    scheduler.wait(lambda: all(each.tokens for each in running))
    before = [len(each.tokens) for each in running]
    long = [request([i] * 100, 1, seed=9) for i in range(3)]
    for each in long:
        scheduler.add(each)
    finish(scheduler, long)
    assert [len(each.tokens) - n for each, n in zip(running, before, strict=True)] == [30] * 3


def test_waiting_requests_get_their_turn(engine):
    scheduler = Scheduler(engine.model, slots=2, turn=5)
    endless = [request([1, 2], 10_000, seed=i) for i in range(2)]
    for each in endless:
        scheduler.add(each)
    scheduler.wait(lambda: all(len(each.tokens) > 20 for each in endless))
    others = [request([3, i], 12, seed=i) for i in range(6)]
    begun = len(endless[0].tokens)
    for each in others:
        scheduler.add(each)
    finish(scheduler, others)
    assert len(endless[0].tokens) - begun <= 3 * 12 + 3 * 5
    for each in others:
        check(engine, each, SamplingParams(seed=each.prompt[1]))
    for each in endless:
        scheduler.abort(each)
    finish(scheduler, endless)
    for each in endless:  # the state is that of the text, however often it was put aside
        assert each.finish_reason == "aborted"
        expected = alone(engine, each.prompt, SamplingParams(seed=each.sampler.seed), len(each.tokens))
        assert each.tokens == expected.tokens
        same_state(state_after(engine, each), expected.state)
    assert free_slots(scheduler)


def test_requests_end_wherever_they_are(engine):
    scheduler = Scheduler(engine.model, slots=1, chunk=4, turn=10_000)
    running, reading, waiting, unseen = (request([1] * 50, 100, seed=0) for _ in range(4))
    scheduler.add(running)
    scheduler.wait(lambda: running.tokens)
    scheduler.abort(running)
    scheduler.add(reading)
    scheduler.add(waiting)
    scheduler.wait(lambda: len(reading.unread) < 50)
    assert running.finish_reason == "aborted"
    for each in (reading, waiting, unseen):
        scheduler.abort(each)
    last = request([2, 3], 3, seed=0)
    scheduler.add(last)
    finish(scheduler, [reading, waiting, unseen, last])
    assert [each.finish_reason for each in (reading, waiting, unseen, last)] == ["aborted"] * 3 + ["length"]
    scheduler.abort(last)
    other = request([2, 3], 3, seed=0)
    scheduler.add(other)
    finish(scheduler, [other])
    assert last.finish_reason == "length"
    assert other.tokens == last.tokens
    assert free_slots(scheduler)


def test_a_failed_step_ends_its_requests_and_no_other(engine, monkeypatch):
    scheduler = Scheduler(engine.model, slots=2, turn=10_000)
    running, waiting = [request([1, 2], 50, seed=i) for i in range(2)], request([3, 4], 5, seed=5)
    for each in [*running, waiting]:
        scheduler.add(each)
    scheduler.wait(lambda: all(each.tokens for each in running))
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "step", lambda *_: 1 / 0)
        finish(scheduler, running)
    assert all(isinstance(each.error, ZeroDivisionError) for each in running)
    with pytest.raises(RequestError, match="no state after this text, because generating it failed: division by zero"):
        scheduler.snapshot(running[0])
    finish(scheduler, [waiting])
    check(engine, waiting, SamplingParams(seed=5))
    assert free_slots(scheduler)


@pytest.mark.parametrize("prompt", [[5], [5, 6, 7]], ids=str)
def test_a_text_whose_state_finds_no_memory_is_an_error(prompt, engine, monkeypatch):
    scheduler, each = Scheduler(engine.model), request(prompt, 5)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler._steps._running._decoder.pool, "load", lambda *_: 1 / 0)
        scheduler.add(each)
        for _ in range(3):
            scheduler._take_orders()
            scheduler._steps.step()
    assert isinstance(each.error, ZeroDivisionError)
    assert free_slots(scheduler)


def test_a_failed_step_ends_all_its_requests_even_if_states_cannot_be_read(engine, monkeypatch):
    scheduler, requests = Scheduler(engine.model), [request([1, 2], 50, seed=i) for i in range(2)]
    for each in requests:
        scheduler.add(each)
    scheduler.wait(lambda: all(each.tokens for each in requests))
    monkeypatch.setattr(engine.model, "step", lambda *_: 1 / 0)
    monkeypatch.setattr(scheduler._steps._running._decoder.pool, "read", lambda *_: [][0])
    scheduler._steps.step()
    assert [type(each.error) for each in requests] == [ZeroDivisionError] * 2
    assert free_slots(scheduler)


def test_an_interrupted_step_is_an_error_for_other_threads(engine, monkeypatch):
    scheduler = Scheduler(engine.model)
    each = request([1, 2], 50, seed=1)
    scheduler.add(each)
    scheduler.wait(lambda: each.tokens)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finish(scheduler, [each])
    assert isinstance(each.error, RequestError)
    assert str(each.error) == "generation was interrupted: KeyboardInterrupt"
    assert free_slots(scheduler)


def test_an_error_in_one_text_ends_that_text_alone(engine):
    class Fails(Request):
        def accept(self, token):
            return 1 / 0 if len(self.tokens) == 3 else True

    scheduler = Scheduler(engine.model)
    fails, fine = Fails([1, 2], Sampler(SamplingParams(seed=1)), 9), request([1, 2], 9, seed=1)
    for each in (fails, fine):
        scheduler.add(each)
    finish(scheduler, [fails, fine])
    assert (fails.finish_reason, type(fails.error), len(fails.tokens)) == ("error", ZeroDivisionError, 3)
    check(engine, fine, SamplingParams(seed=1))


def test_logits_that_are_not_finite_end_their_text_alone(engine, monkeypatch):
    step = engine.model.step

    def broken(tokens, *others):
        logits = step(tokens, *others)
        logits[tokens == 32] = float("nan")
        return logits

    monkeypatch.setattr(engine.model, "step", broken)
    scheduler = Scheduler(engine.model)
    damaged, fine = request([32], 5, seed=1), request([1], 5, seed=1, banned_tokens=[32])
    for each in (damaged, fine):
        scheduler.add(each)
    finish(scheduler, [damaged, fine])
    assert damaged.tokens == []
    assert "not finite" in str(damaged.error)
    check(engine, fine, SamplingParams(seed=1, banned_tokens=[32]))


def test_what_does_not_fit_is_refused_at_once(engine, tales):
    scheduler = Scheduler(engine.model, most_waiting=2)
    for wrong, message in [
        (request([V], 5), "prompt: got the token id 33, expected ids from 0 to 32, the model's vocabulary"),
        (request([10**30], 5), "prompt: got the token id 1000"),
        (request([1], 5, state=tales.forward([1])[1]), "another model"),
        (request([1], 5, state=engine.initial_state(2)), "state of 2 sequences given for a batch of 1"),
        (request([1], 5, logit_bias={V: 1.0}), "logit_bias: got token 33"),
        (request([1], 5, banned_tokens=range(V)), "every token of the vocabulary is banned"),
    ]:
        with pytest.raises(RequestError, match=message):
            scheduler.add(wrong)
    for _ in range(2):
        scheduler.add(request([1], 5))
    with pytest.raises(RequestError, match="2 requests are waiting, which is the limit; try again later"):
        scheduler.add(request([1], 5))


def test_a_request_is_added_once(engine):
    one = request([1, 2], 4)
    schedulers = Scheduler(engine.model), Scheduler(engine.model)
    schedulers[0].add(one)
    for scheduler in schedulers:
        with pytest.raises(RequestError, match="this request was added before"):
            scheduler.add(one)
    finish(schedulers[0], [one])
    with pytest.raises(RequestError, match="this request was added before"):
        schedulers[0].add(one)
    assert len(one.tokens) == 4
    refused = request([1, 2], 4)
    with pytest.raises(RequestError, match="which is the limit"):
        Scheduler(engine.model, most_waiting=0).add(refused)
    schedulers[0].add(refused)


@pytest.mark.parametrize("name", ["slots", "chunk", "budget", "turn"])
def test_numbers_with_which_no_text_would_end_are_refused(name, engine):
    with pytest.raises(RequestError, match=f"{name}: got 0, expected an integer >= 1"):
        Scheduler(engine.model, **{name: 0})


def test_a_scheduler_made_in_inference_mode_works_outside_of_it(engine):
    with torch.inference_mode():
        scheduler = Scheduler(engine.model)
    each = request([1, 2], 5, seed=1)
    scheduler.add(each)
    scheduler._take_orders()
    scheduler._steps.step()
    assert each.tokens
    finish(scheduler, [each])
    check(engine, each, SamplingParams(seed=1))


def test_streams_that_are_read_in_turn_share_one_slot(engine):
    engine_scheduler = Scheduler(engine.model, slots=1)
    streams = [TokenStream(engine, [1, 2, i], Sampler(SamplingParams(seed=i)), 12) for i in range(3)]
    for stream in streams:
        stream._scheduler = engine_scheduler
    got = [[next(stream) for stream in streams] for _ in range(12)]
    for i, stream in enumerate(streams):
        expected = alone(engine, [1, 2, i], SamplingParams(seed=i), 12)
        assert [row[i] for row in got] == expected.tokens
        same_state(stream.read_all(), expected.state)


def test_a_stream_is_not_ahead_of_its_reader(engine):
    stream = TokenStream(engine, [1, 2], Sampler(SamplingParams(seed=1)), 50)
    next(stream)
    other = list(TokenStream(engine, [1, 2], Sampler(SamplingParams(seed=1)), 50))
    assert len(stream.request.tokens) == 1
    assert list(stream) == other[1:]


def test_a_dropped_stream_gives_its_slot_back(engine):
    scheduler = scheduler_of(engine)
    stream = TokenStream(engine, [1, 2], Sampler(SamplingParams(seed=1)), 50)
    next(stream)
    assert not free_slots(scheduler)
    del stream
    gc.collect()
    list(TokenStream(engine, [1, 2], Sampler(SamplingParams(seed=1)), 5))
    assert free_slots(scheduler)


def test_the_garbage_collector_may_drop_a_stream_at_any_time(engine):
    scheduler = scheduler_of(engine)
    stream = TokenStream(engine, [1, 2], Sampler(SamplingParams(seed=1)), 50)
    next(stream)
    stream.itself = stream  # so that only the garbage collector drops it
    dropped = stream.request
    del stream
    with scheduler._lock:
        collecting = threading.Thread(target=gc.collect, daemon=True)
        collecting.start()
        collecting.join(timeout=10)
        assert not collecting.is_alive(), "it waits for a lock, which the thread that it interrupted may hold"
    list(TokenStream(engine, [1, 2], Sampler(SamplingParams(seed=1)), 5))
    assert dropped.finish_reason == "aborted"
    assert free_slots(scheduler)


def test_control_c_takes_effect_between_steps(engine):
    class Interrupts(Request):
        def accept(self, token):
            if len(self.tokens) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return True

    scheduler = Scheduler(engine.model)
    each = Interrupts([1, 2], Sampler(SamplingParams(seed=1)), 9)
    scheduler.add(each)
    with pytest.raises(KeyboardInterrupt):
        finish(scheduler, [each])
    assert len(each.tokens) == 4
    finish(scheduler, [each])
    check(engine, each, SamplingParams(seed=1))


def live_tensors():
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@pytest.mark.slow
def test_threads_that_add_and_abort(engine):
    """2,000 requests of eight threads: each text is what it is alone, and nothing is kept of those that have ended."""
    scheduler = Scheduler(engine.model, slots=6, turn=5)
    wrong, requests = [], weakref.WeakSet()

    def one(rng, seed):
        params = SamplingParams(seed=seed, presence_penalty=rng.choice([0.0, 0.3]))
        prompt = [rng.randrange(V) for _ in range(rng.randrange(1, 9))]
        each = Request(prompt, Sampler(params), rng.randrange(1, 20))
        requests.add(each)
        scheduler.add(each)
        if rng.random() < 0.3:
            scheduler.wait(lambda: each.tokens or each.finish_reason)
            scheduler.abort(each)
        finish(scheduler, [each])
        if each.finish_reason != "aborted" and seed % 10 == 0:
            check(engine, each, params)

    def work(seeds):
        rng = random.Random(seeds[0])
        try:
            for seed in seeds:
                one(rng, seed)
        except BaseException as error:
            wrong.append(error)

    def at_once(seeds):
        """In eight threads; returns what is left: tensors, and requests."""
        each = len(seeds) // 8
        threads = [threading.Thread(target=work, args=[seeds[i * each : (i + 1) * each]]) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one(random.Random(0), 1)  # its steps forget the requests that were aborted last
        return live_tensors(), len(requests)

    n_tensors, _ = at_once(range(400))  # which fill caches
    after, n_requests = at_once(range(400, 2000))
    assert not wrong
    assert free_slots(scheduler)
    assert after <= n_tensors + 20
    assert n_requests == 0


@pytest.mark.parametrize("extreme", [{"top_p": 0.0}, {"top_k": 1, "top_p": 0.0, "temperature": 5.0}], ids=str)
def test_texts_that_follow_the_rwkv_package_share_steps_with_others(engine, extreme):
    kinds = [{"compat": "rwkv", **extreme}, {}, {"compat": "rwkv", "top_p": 0.5}, {"top_p": 0.9}]
    scheduler = Scheduler(engine.model)
    requests = [request([1 + i], 40, seed=i, **kinds[i % 4]) for i in range(8)]
    for each in requests:
        scheduler.add(each)
    finish(scheduler, requests)
    for each in requests:
        check(engine, each, each.sampler.params)
