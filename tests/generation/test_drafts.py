"""Drafts make texts with fewer steps, and never change a token, a log-probability or a state."""

from __future__ import annotations

import random

import pytest
import torch
from generation.alone import alone
from generation.test_scheduler import PARAMS, V, check, finish, free_slots, same_state
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine import RWKV, RequestError
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.drafts import _RUNS, Drafts
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.generation.step_cost import StepCost

FORMATS = ["cpu fp32", "cpu bf16", "cpu fp16", "cpu fp32i8", "cpu fp32i4"]


@pytest.fixture(scope="module")
def engine(each_version):
    engine = RWKV.from_pretrained(each_version).engine
    if not engine.model.layers[0].is_packed:
        pytest.skip("needs compiled kernels: without them drafts are not made")
    return engine


def request(prompt, n, drafts=8, state=None, **options):
    return Request(prompt, Sampler(SamplingParams(drafts=drafts, **options)), n, state)


def counted_steps(scheduler, monkeypatch):
    """A list to which the number of rows of each later step is appended."""
    decoder, rows = scheduler._steps._running._decoder, []
    step = decoder.step
    monkeypatch.setattr(decoder, "step", lambda ids, *others: rows.append(len(ids)) or step(ids, *others))
    return rows


class Foreseen(Drafts):
    """Guesses the text that will follow, in which some tokens are exchanged."""

    def __init__(self, tokens, rng, wrong):
        super().__init__([])
        self._coming, self._rng, self._wrong = list(tokens), rng, wrong

    def add(self, token):
        self._coming.pop(0)

    def guess(self, most):
        length = self._rng.randrange(most + 1)
        coming = self._coming[:length]
        return [self._rng.randrange(V) if self._rng.random() < self._wrong else token for token in coming], [
            1.0
        ] * length


texts = st.lists(
    st.tuples(
        st.integers(1, 12),  # tokens of the prompt
        st.integers(1, 40),  # new tokens
        st.integers(0, len(PARAMS) - 1),
        st.integers(0, 8),  # drafts
        st.sampled_from([0.0, 0.2, 1.0]),  # the share of wrong guesses
        st.booleans(),  # continues a state
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 18), st.integers(1, 10), st.randoms())
def test_every_text_is_what_it_is_without_drafts(engine, texts, slots, turn, rng):
    scheduler = Scheduler(engine.model, slots, 16, 5, turn)
    _, earlier = engine.forward(torch.tensor([[1, 2, 3]]))
    requests, checks = [], []
    for seed, (n_prompt, n, which, drafts, wrong, continues) in enumerate(texts):
        options = PARAMS[which] | {"seed": seed}
        prompt, state = [rng.randrange(V) for _ in range(n_prompt)], earlier if continues else None
        each = request(prompt, n, drafts, state, **options)
        expected = alone(engine, prompt, SamplingParams(**options), n, state)
        # Not the numbers of hypothesis, because the lengths of drafts depend on times.
        each.drafts = Foreseen([*expected.tokens, *[0] * 9], random.Random(seed), wrong)
        requests.append(each)
        checks.append((SamplingParams(**options), state))
        scheduler.add(each)
    finish(scheduler, requests)
    assert free_slots(scheduler)
    for each, (params, state) in zip(requests, checks, strict=True):
        check(engine, each, params, state)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", FORMATS)
def test_texts_of_every_format_take_fewer_steps(strategy, monkeypatch):
    model = RWKV.from_pretrained("tales", strategy)
    if not model.engine.model.layers[0].is_packed:
        pytest.skip("needs compiled kernels: without them drafts are not made")
    scheduler = Scheduler(model.engine.model, slots=3)
    rows = counted_steps(scheduler, monkeypatch)
    prompt = model.encode_prompt("The king said: Go. The queen said: Go. " * 6)
    for params in ({"temperature": 0.0}, {"temperature": 0.5, "seed": 3, "logprobs": 1}):
        rows.clear()
        each = request(prompt, 80, **params)
        scheduler.add(each)
        finish(scheduler, [each])
        check(model.engine, each, SamplingParams(**params))
        assert len(rows) < len(each.tokens), "some drafts were right"
    assert free_slots(scheduler)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}], ids=str)
def test_streams_of_texts_and_their_states(options):
    """A stop string may end inside of a right draft; the state is that of exactly the text."""
    model, rng = RWKV.from_pretrained("tales", "cpu fp32i8"), random.Random(5)
    words = ["the king", " and", " the", " queen", ".", " said", " once", ","]
    for seed in range(100):
        prompt = "".join(rng.choices(words, k=3)) * rng.randrange(1, 5)
        arguments = options | {"max_new_tokens": rng.randrange(1, 40), "seed": seed, "stop": rng.sample(words, 1)}
        ours, theirs = model.stream(prompt, drafts=8, **arguments), model.stream(prompt, **arguments)
        for i, (piece, expected) in enumerate(zip(ours, theirs, strict=True)):
            assert piece == expected
            if i % 7 == 0:
                same_state(ours.state, theirs.state)
        assert (ours.text, ours.tokens) == (theirs.text, theirs.tokens)
        same_state(ours.state, theirs.state)
        assert model.generate(prompt, drafts=8, **arguments) == theirs.text


def test_paused_texts_keep_what_was_processed_ahead(engine, monkeypatch):
    scheduler = Scheduler(engine.model, slots=2, turn=3)
    expected = alone(engine, [1, 2, 3], SamplingParams(temperature=0), 30).tokens
    each = request([1, 2, 3], 30, temperature=0)
    each.drafts = Foreseen([*expected, *[0] * 9], random.Random(0), 0)
    each.drafts.guess = lambda most: (each.drafts._coming[:most], [1.0] * most)
    rows = counted_steps(scheduler, monkeypatch)
    scheduler.add(each)
    for n in range(1, 31):
        each.wanted = n
        scheduler.wait(lambda n=n: len(each.tokens) >= n)
        assert each.tokens == expected[:n]
        read = [1, 2, 3, *expected[: n - 1]]
        assert scheduler.snapshot(each).position.tolist() == [len(read)]
    assert rows == [9, 9, 9, 2]  # the first token comes from the prompt, and each row gives one more
    assert free_slots(scheduler)


def test_paused_texts_make_room_for_others(engine):
    """Their drafts may take every slot."""
    scheduler = Scheduler(engine.model, slots=6)
    scheduler._steps._running._cost.best_draft = lambda running, chances: len(chances)
    paused = [request([1, 2, 3], 40, drafts=15, temperature=0) for _ in range(2)]
    expected = alone(engine, [1, 2, 3], SamplingParams(temperature=0), 40).tokens
    for each in paused:
        each.drafts = Foreseen([*expected, *[0] * 15], random.Random(0), 0)
        each.drafts.guess = lambda most, drafts=each.drafts: (drafts._coming[:most], [1.0] * most)
        each.wanted = 2
        scheduler.add(each)
        scheduler.wait(lambda each=each: len(each.tokens) >= 2)
    assert not scheduler._steps._running._decoder.pool._free
    other = request([4, 5], 3, temperature=0)
    scheduler.add(other)
    scheduler._take_orders()
    for _ in range(3):
        scheduler._steps.step()
    check(engine, other, SamplingParams(temperature=0))
    for each in paused:
        each.wanted = 99
    finish(scheduler, paused)
    assert [each.tokens for each in paused] == [expected] * 2
    assert free_slots(scheduler)


def test_a_full_step_has_no_room_for_drafts(engine, monkeypatch):
    scheduler = Scheduler(engine.model, slots=40)
    rows = counted_steps(scheduler, monkeypatch)
    requests = [request([i % 32 + 1], 12, temperature=0) for i in range(40)]
    for each in requests:
        scheduler.add(each)
    finish(scheduler, requests)
    assert max(rows) == 32
    for each in requests:
        check(engine, each, SamplingParams(temperature=0))


def test_a_failed_step_frees_the_slots_of_its_drafts(engine, monkeypatch):
    scheduler = Scheduler(engine.model, slots=4)
    requests = [request([1, 2, 3] * 3, 40, temperature=0) for _ in range(3)]
    for each in requests:
        each.drafts = Foreseen(range(50), random.Random(0), 1)
        scheduler.add(each)
    scheduler._take_orders()
    for _ in range(3):
        scheduler._steps.step()
    monkeypatch.setattr(scheduler._steps._running._decoder, "step", lambda *_: 1 / 0)
    finish(scheduler, requests)
    assert {each.finish_reason for each in requests} == {"error"}
    assert free_slots(scheduler)


def guessed_plainly(tokens, most):
    """By searching the whole text."""
    for run in _RUNS:
        end = tokens[-run:]
        for at in range(len(tokens) - 1, run - 1, -1):
            if len(end) == run and tokens[at - run : at] == end:
                guess = []
                while len(guess) < most:
                    guess.append([*tokens, *guess][at + len(guess)])
                return guess
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 12))
def test_guesses_are_what_followed_the_last_time(tokens, most):
    begun, all_ = Drafts([]), Drafts(tokens)
    for token in tokens:
        begun.add(token)
    if expected := guessed_plainly(tokens, most):
        assert begun.guess(most)[0] == all_.guess(most)[0] == expected


@pytest.mark.parametrize(
    ("begin", "end", "guessed"),
    [
        ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 9], [6, 7]),  # 5 was replaced by 9
        ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 8, 9], [7]),  # each of them replaces a token
        ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 6], [7]),  # 5 was left out
        (
            [1, 2, 3, 4, 5, 6, 7],
            [1, 2, 3, 4, 8, 9, 10, 11, 12, 5],
            [6, 7],
        ),  # tokens were inserted
        ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 9, 6], [7]),  # a right guess after a replaced token
    ],
)
def test_a_passage_is_followed_where_the_text_changes_it(begin, end, guessed):
    drafts = Drafts(begin)
    for token in end:
        drafts.add(token)
    assert drafts.guess(len(guessed))[0] == guessed


def test_a_passage_is_left_after_many_differences():
    drafts = Drafts([1, 2, 3, 4, 5, *range(100, 150)])
    for token in [1, 2, 3, 4, *range(200, 217)]:
        drafts.add(token)
    assert drafts.guess(4) == ([], [])


def test_how_often_guesses_were_right():
    drafts = Drafts([1, 2, 3, 4] * 2)
    assert drafts.guess(5) == ([1, 2, 3, 4, 1], [0.5, 0.7, 0.8, 0.8, 0.7]), "assumptions, before any was seen"
    for token in [1, 2, 3, 4] * 20:
        drafts.add(token)
    assert min(drafts.guess(8)[1]) > 0.97
    rng = random.Random(1)
    for _ in range(300):
        drafts.add(rng.randrange(4))
    assert max(drafts.guess(8)[1]) < 0.6


def test_names_of_fields_are_guessed_and_what_is_filled_in_is_not():
    """Each record is 1 2 3 A 4 5 6 B, where A and B are always new."""
    new = iter(range(100, 200))
    text = [token for _ in range(6) for token in (1, 2, 3, next(new), 4, 5, 6, next(new))]
    drafts = Drafts(text[:16])
    for token in [*text[16:], 1, 2]:
        drafts.add(token)
    guessed, chances = drafts.guess(8)
    assert guessed == [3, text[43], 4, 5, 6, text[47], 1, 2]
    assert min(chances[0], chances[3], chances[4]) > 0.85
    assert max(chances[1], chances[5]) < 0.25
    assert StepCost().best_draft(1, chances) == 1


def test_a_draft_is_as_long_as_it_pays():
    cost = StepCost()
    assert cost.best_draft(1, [1.0] * 8) == 8
    assert cost.best_draft(1, [0.6] * 8) in range(2, 6)
    assert cost.best_draft(1, [0.1] * 8) == 0
    assert cost.best_draft(8, [0.5] * 8) == 0, "each token delays all texts of the step"
    cost.add(1, 0, 1.0)
    cost.add(1, 1, 1.5)
    cost.add(1, 2, 1.5)
    assert cost.best_draft(1, [0.3] * 2) == 0, "steps of three rows were slow, and seemed so to one of two"
    for _ in range(100):
        cost.add(1, 2, 1.01)
    assert cost.best_draft(1, [0.3] * 2) == 2
    cost.add(1, 8, 100.0)
    assert cost.best_draft(1, [1.0] * 8) == 7
    assert StepCost().best_draft(1, []) == 0


def test_a_draft_that_once_was_slow_is_tried_again():
    cost = StepCost()
    cost.add(1, 0, 1.0)
    for drafted in range(1, 9):
        cost.add(1, drafted, 1000.0)
    assert cost.best_draft(1, [0.95] * 8) > 0


def test_drafts_that_are_not_a_number_are_refused():
    with pytest.raises(RequestError, match="drafts: got -1, expected an integer >= 0"):
        SamplingParams(drafts=-1)
