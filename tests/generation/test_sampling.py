from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from checkpoints import save_pth
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Shape

from rwkv_engine import RWKV, RequestError
from rwkv_engine.generation import Sampler, SamplingParams, generate_tokens
from rwkv_engine.generation.philox import philox4x32, uniform
from rwkv_engine.generation.sampling import inverse_cdf

F, P = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known-answer vectors published with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((F, F, F, F), (F, F), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (P[:4], P[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert philox4x32(counter, key) == expected


def test_uniform_is_uniform_and_depends_on_every_argument():
    draws = np.array([uniform(7, 0, position) for position in range(20000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=100, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 160  # chi-square, 99 degrees of freedom: 1 in 10,000 above 157
    assert len({uniform(s, n, p) for s in (0, 1, 2**63) for n in (0, 1, 2**40) for p in (0, 1, 2**33)}) == 27


def expected_probabilities(logits, temperature, top_k, top_p):
    """The documented order, written with NumPy: temperature, top-k, top-p."""
    scaled = logits.astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    kept = order[:top_k] if top_k else order
    total, cumulative, final = probs[kept].sum(), 0.0, []
    for i in kept:
        final.append(i)
        cumulative += probs[i]
        if top_p < 1 and cumulative >= top_p * total:
            break
    result = np.zeros_like(probs)
    result[final] = probs[final] / probs[final].sum()
    return result


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.8, 6, 0.7), (2.0, 0, 0.3), (1.0, 1, 1.0)],
)
def test_draws_follow_the_documented_distribution(temperature, top_k, top_p):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2
    expected = expected_probabilities(logits.numpy(), temperature, top_k, top_p)
    sampler = Sampler(SamplingParams(temperature, top_k, top_p, seed=5))
    n = 20000
    tokens = sampler.sample(logits.expand(n, -1), range(n), [0] * n)
    counts = np.bincount(tokens, minlength=12)
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = ((counts - n * expected)[possible] ** 2 / (n * expected[possible])).sum()
    assert chi_square < 40  # at most 11 degrees of freedom: about 1 in 30,000 above 40


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=30),
    top_k=st.integers(0, 31),
    top_p=st.floats(0.01, 1.0),
    temperature=st.floats(0.1, 5),
)
@settings(deadline=None)
def test_probabilities_equal_the_documented_order(logits, top_k, top_p, temperature):
    logits = np.array(logits, dtype=np.float32)
    params = SamplingParams(temperature, top_k, top_p, seed=0)
    got = Sampler(params).probabilities(torch.from_numpy(logits)[None])[0].numpy()
    expected = expected_probabilities(logits, temperature, top_k, top_p)
    if ((got > 0) == (expected > 0)).all():
        np.testing.assert_allclose(got / got.sum(), expected, rtol=1e-9, atol=1e-300)
    else:  # a sum within rounding of p: at most one token more or less
        assert abs(int((got > 0).sum()) - int((expected > 0).sum())) == 1


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


def test_the_draw_cannot_fall_past_the_last_possible_id():
    probs = torch.tensor([[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert inverse_cdf(probs, torch.tensor([1 - 2**-53] * 2, dtype=torch.float64)) == [1, 1]
    assert inverse_cdf(probs, torch.zeros(2, dtype=torch.float64)) == [0, 1]


def test_a_draw_does_not_depend_on_its_neighbours():
    logits = torch.randn(8, 50)
    sampler = Sampler(SamplingParams(seed=9))
    together = sampler.sample(logits, range(8), range(8))
    assert together == [sampler.sample(logits[i : i + 1], [i], [i])[0] for i in range(8)]


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
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**64},
    ],
    ids=str,
)
def test_values_out_of_range_are_named(bad):
    [name] = bad
    with pytest.raises(RequestError, match=f"{name}: got"):
        SamplingParams(**bad)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(RequestError, match="not finite"):
        Sampler(SamplingParams()).sample(torch.tensor([[1.0, float("nan")]]), [0], [0])


@pytest.fixture
def model(tmp_path):
    return RWKV.from_pretrained(save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth"))


def test_the_same_seed_writes_the_same_and_another_does_not(model):
    def run(seed):
        return list(generate_tokens(model.engine, [1, 2], SamplingParams(seed=seed), 30))

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(None) != run(None)


def test_a_text_written_in_two_calls_is_the_text_written_in_one(model):
    params = SamplingParams(seed=4)
    whole = list(generate_tokens(model.engine, [1, 2], params, 20))
    half = list(generate_tokens(model.engine, [1, 2], params, 8))
    _, state = model.forward([1, 2, *half[:-1]])
    rest = list(generate_tokens(model.engine, half[-1:], params, 12, state))
    assert half + rest == whole


def test_stop_tokens_end_the_text_and_are_not_part_of_it(model):
    whole = list(generate_tokens(model.engine, [1, 2], SamplingParams(seed=4), 20))
    stop = whole[7]
    stopped = list(generate_tokens(model.engine, [1, 2], SamplingParams(seed=4, stop_tokens=(stop,)), 20))
    assert stopped == whole[: whole.index(stop)]


def test_no_tokens_when_none_are_asked_for(model):
    assert list(generate_tokens(model.engine, [1], SamplingParams(), 0)) == []
    with pytest.raises(RequestError, match="max_new_tokens"):
        generate_tokens(model.engine, [1], SamplingParams(), -1)


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e30])
def test_extreme_temperatures(temperature):
    logits = torch.tensor([[1.0, 3.0, 3.0, -2.0]])
    [token] = Sampler(SamplingParams(temperature, seed=1)).sample(logits, [0], [0])
    assert token in ((1, 2) if temperature < 1 else (0, 1, 2, 3))
