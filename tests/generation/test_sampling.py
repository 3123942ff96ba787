from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkv_engine import RequestError
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.sampling import History
from rwkv_engine.ops.draw_tokens import inverse_cdf, whole_numbers


def expected_probabilities(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, bias=None, banned=(), written=()):
    """The documented order, written with NumPy. `written`: (token, what its occurrence counts), penalised by 0.5 for
    being there and 0.3 for each count."""
    adjusted = logits.astype(np.float64)
    for token, value in (bias or {}).items():
        adjusted[token] += value
    for token in {token for token, _ in written}:
        adjusted[token] -= 0.5 + 0.3 * sum(count for other, count in written if other == token)
    adjusted[list(banned)] = -np.inf
    scaled = adjusted / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    kept = order[:top_k] if top_k else order
    total, cumulative, nucleus = probs[kept].sum(), 0.0, []
    for i in kept:
        nucleus.append(i)
        cumulative += probs[i]
        if top_p < 1 and cumulative >= top_p * total:
            break
    final = [i for i in nucleus if probs[i] >= min_p * probs[order[0]]]
    result = np.zeros_like(probs)
    result[final] = probs[final] / probs[final].sum()
    return result


def chi_square(tokens, expected):
    n = len(tokens)
    counts = np.bincount(tokens, minlength=len(expected))
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    return ((counts - n * expected)[possible] ** 2 / (n * expected[possible])).sum()


DRAWS = 100_000
LIMIT = 40  # of chi-square; at most 11 degrees of freedom: about 1 in 30,000 above 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"top_p": 0.8},
        {"temperature": 0.8, "top_k": 6, "top_p": 0.7},
        {"temperature": 2.0, "top_p": 0.3},
        {"top_k": 1},
        {"min_p": 0.1},
        {"temperature": 1.5, "top_p": 0.95, "min_p": 0.05},
        {"logit_bias": {0: 3.0, 4: -1.0}, "banned_tokens": [1, 2], "top_p": 0.9},
    ],
    ids=str,
)
def test_samples_follow_the_documented_distribution(asked):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2
    names = {"logit_bias": "bias", "banned_tokens": "banned"}
    expected = expected_probabilities(logits.numpy(), **{names.get(name, name): value for name, value in asked.items()})
    sampler = Sampler(SamplingParams(**asked, seed=5))
    tokens = sampler.sample(logits.expand(DRAWS, -1), range(DRAWS), [0] * DRAWS)
    assert chi_square(tokens, expected) < LIMIT


def test_samples_follow_the_penalties():
    """Tokens 3, 7 and 3 again were written; what an occurrence counts is halved by every token after it."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.3, penalty_decay=0.5, temperature=0.8, seed=5)
    sampler, history = Sampler(params), History(DRAWS, 12, torch.device("cpu"))
    for token in (3, 7, 3):
        history.add([token] * DRAWS, params.penalty_decay, sampler.uncounted)
    expected = expected_probabilities(logits.numpy(), 0.8, written=[(3, 0.25), (7, 0.5), (3, 1.0)])
    tokens = sampler.sample(logits.expand(DRAWS, -1), range(DRAWS), [0] * DRAWS, history)
    assert chi_square(tokens, expected) < LIMIT
    assert history.seen[range(DRAWS), tokens].all(), "what is drawn is written"


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=30),
    top_k=st.integers(0, 31),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    temperature=st.floats(0.1, 5),
)
@example(logits=[-2.220446049250313e-16, 0.0], top_k=0, top_p=0.5, min_p=0.0, temperature=1.0)
@settings(deadline=None)
def test_probabilities_equal_the_documented_order(logits, top_k, top_p, min_p, temperature):
    logits = np.array(logits, dtype=np.float32)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=0)
    got = Sampler(params).probabilities(torch.from_numpy(logits)[None])[0].numpy()
    expected = expected_probabilities(logits, temperature, top_k, top_p, min_p)
    if ((got > 0) == (expected > 0)).all():
        np.testing.assert_allclose(got / got.sum(), expected, rtol=1e-9, atol=1e-300)
    else:  # a sum within rounding of p: one token more or less; or two that are equal but for rounding: either of them
        at_the_limit = logits[(got > 0) != (expected > 0)]
        assert len(at_the_limit) <= 2
        assert np.ptp(at_the_limit) < 1e-12


OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0, 0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 3]),
        "top_p": st.sampled_from([1.0, 0.6]),
        "presence_penalty": st.sampled_from([0.0, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, 0.4]),
        "penalty_decay": st.sampled_from([1.0, 0.9]),
        "compat": st.sampled_from([None, "rwkv"]),
    }
)


@given(asked=OPTIONS, rows=st.integers(2, 6), seed=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=50)
def test_a_batch_of_one_equals_a_batch_of_many(asked, rows, seed):
    """Over several steps, each row with a history of its own."""
    sampler = Sampler(SamplingParams(**asked, seed=seed))
    steps = torch.randn(5, rows, 20, generator=torch.Generator().manual_seed(seed % 2**32))

    def write(which):
        history = History(len(which), 20, torch.device("cpu")) if sampler.params.penalizes else None
        return [sampler.sample(step[which], [t] * len(which), which, history) for t, step in enumerate(steps)]

    together = write(list(range(rows)))
    for row in range(rows):
        assert [tokens[row] for tokens in together] == [token for [token] in write([row])]


def test_top_p_of_one_is_off_whatever_the_sum_rounds_to():
    logits = torch.randn(50277, generator=torch.Generator().manual_seed(0))
    probs = Sampler(SamplingParams(top_p=1.0, seed=0)).probabilities(logits[None])
    assert (probs > 0).all()


def test_greedy_takes_the_lowest_id_among_equals():
    sampler = Sampler(SamplingParams(temperature=0))
    assert sampler.sample(torch.tensor([[0.0, 3.0, 3.0], [2.0, 1.0, 0.0]]), [0, 0], [0, 0]) == [1, 0]


def test_top_k_of_one_is_greedy():
    logits = torch.randn(64, 100)
    greedy = logits.argmax(-1).tolist()
    assert Sampler(SamplingParams(top_k=1, seed=1)).sample(logits, range(64), [0] * 64) == greedy


def test_sampling_never_exceeds_the_last_possible_id():
    probs = torch.tensor([[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert inverse_cdf(probs, torch.tensor([1 - 2**-53] * 2, dtype=torch.float64)).tolist() == [1, 1]
    assert inverse_cdf(probs, torch.zeros(2, dtype=torch.float64)).tolist() == [0, 1]


def test_integers_sum_exactly_and_zeros_add_nothing():
    probs = torch.full((2, 2**17), 0.1, dtype=torch.float64)
    probs[1, ::2] = 0
    whole = whole_numbers(probs)
    assert whole.sum(-1).tolist() == [2**62, 2**61]
    assert (whole[1, ::2] == 0).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": "x"},
        {"top_k": 2.5},
        {"seed": "x"},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_k": 2**63},
        {"top_k": True},
        {"logprobs": True},
        {"temperature": False},
        {"temperature": 10**400},
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**64},
        {"min_p": 1.5},
        {"presence_penalty": float("inf")},
        {"presence_penalty": 10**400},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": -1e308},
        {"frequency_penalty": 1e308},
        {"frequency_penalty": "x"},
        {"penalty_decay": 1.1},
        {"logit_bias": [1]},
        {"logit_bias": {-1: 0.5}},
        {"logit_bias": {1: float("-inf")}},
        {"logit_bias": {1: 10**400}},
        {"logit_bias": {1: 1e308}},
        {"banned_tokens": 5},
        {"banned_tokens": ["a"]},
        {"stop_tokens": [-1]},
        {"stop": "END"},
        {"stop": [""]},
        {"stop": ["\ud800"]},
        {"logprobs": -1},
        {"compat": "gpt"},
    ],
    ids=str,
)
def test_values_out_of_range_are_named(bad):
    [name] = bad
    with pytest.raises(RequestError, match=f"{name}: (got|expected)"):
        SamplingParams(**bad)


@pytest.mark.slow
@pytest.mark.parametrize("compat", [None, "rwkv"])
@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": -1e30, "presence_penalty": -1e30},
        {"frequency_penalty": 1e30, "presence_penalty": -1e30},
        {"logit_bias": {5: 1e30, 6: -1e30}, "frequency_penalty": 1e30},
        {"temperature": 5e-324},
        {"temperature": 1e308},
        {"top_p": 5e-324},
    ],
    ids=str,
)
def test_the_largest_and_smallest_values_give_a_text(tales, options, compat):
    assert len(tales.generate("The king", 12, seed=1, compat=compat, **options)) > 1


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(RequestError, match="not finite"):
        Sampler(SamplingParams()).sample(torch.tensor([[1.0, float("nan")]]), [0], [0])


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e30])
def test_extreme_temperatures(temperature):
    logits = torch.tensor([[1.0, 3.0, 3.0, -2.0]])
    [token] = Sampler(SamplingParams(temperature=temperature, seed=1)).sample(logits, [0], [0])
    assert token in ((1, 2) if temperature < 1 else (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"logit_bias": {5: 1.0}}, "logit_bias: got token 5, expected ids below 5"),
        ({"banned_tokens": [9]}, "banned_tokens: got token 9"),
        ({"banned_tokens": range(5)}, "every token of the vocabulary is banned"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_vocabulary_is_refused(asked, message):
    with pytest.raises(RequestError, match=message):
        Sampler(SamplingParams(**asked)).sample(torch.zeros(1, 5), [0], [0])


def test_logprobs_are_the_models_own():
    logits = torch.tensor([[1.0, 3.0, 2.0, -5.0]])
    sampler = Sampler(SamplingParams(temperature=0.1, banned_tokens=[1], logprobs=2))
    [got] = sampler.logprobs(logits, [2])
    expected = torch.log_softmax(logits.double(), -1)[0].tolist()
    assert got.logprob == pytest.approx(expected[2])
    assert got.top == ((1, pytest.approx(expected[1])), (2, pytest.approx(expected[2])))
