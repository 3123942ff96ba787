"""The scheduler where decoding steps are recorded, as CUDA graphs are, without CUDA."""

from __future__ import annotations

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from generation.alone import alone
from oracle import Shape
from tape import tape

from rwkv_engine import RWKV
from rwkv_engine.generation import Sampler, SamplingParams, steps
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.sampling_rows import sample_rows
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.generation.token_mask import packed
from rwkv_engine.runtime import decoder
from rwkv_engine.runtime.decoder import BUCKETS

V = 33


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    weights = oracle.random_weights(Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=V))
    return RWKV.from_pretrained(save_pth(weights, tmp_path_factory.mktemp("model") / "m.pth")).engine


def run(engine, all_params, most, **options):
    """Requests of one after the other length, so that every number of rows occurs."""
    scheduler = Scheduler(engine.model, **options)
    requests = []
    for i, params in enumerate(all_params):
        requests.append(Request([1 + i % 7] * (1 + i % 3), Sampler(params), 1 + i % most, sample=i))
        scheduler.add(requests[-1])
    scheduler.wait(lambda: all(request.finish_reason for request in requests))
    return requests


def test_a_thousand_temperatures_and_penalties_take_at_most_four_recordings_for_each_bucket(engine, monkeypatch):
    """Greedy texts, cuts and penalties among them."""
    recorded = []

    def counting(function):
        recorded.append(function)
        return function

    monkeypatch.setattr(decoder, "_capture_for", lambda model: counting)
    kinds = [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {}]
    params = [
        SamplingParams(seed=i, temperature=i / 500, frequency_penalty=i % 7 and i / 900, **kinds[i % 5])
        for i in range(1000)
    ]
    requests = run(engine, params, 5)
    assert len({request.sampler.params.temperature for request in requests}) == 1000
    assert 0 < len(recorded) <= 4 * len(BUCKETS)


@pytest.mark.parametrize("kinds", [[{}, {"logprobs": 2}], [{}, {"presence_penalty": 0.5}, {"drafts": 3}]], ids=str)
def test_texts_of_recorded_steps_do_not_depend_on_their_company(engine, monkeypatch, kinds):
    """Where no text has penalties, all tokens are sampled by the recording."""
    monkeypatch.setattr(decoder, "_capture_for", lambda model: tape)
    params = [SamplingParams(seed=i, temperature=i / 10, top_p=0.95, **kinds[i % len(kinds)]) for i in range(20)]
    for request, of_text in zip(run(engine, params, 11), params, strict=True):
        expected = alone(engine, request.prompt, of_text, request.max_new_tokens, None, request.sample)
        assert request.tokens == expected.tokens
        assert request.logprobs == expected.logprobs


def third(tokens):
    """Allows every third token, from another one on each time."""
    return packed(torch.arange(V) % 3 == len(tokens) % 3)


ADJUSTED = [
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.7, "penalty_decay": 0.9},
    {"banned_tokens": [3, 4, 9], "presence_penalty": -0.3},
    {},
    {"logit_bias": {5: 4.0, 6: -2.0}, "logprobs": 2},
    {"allowed_tokens": third, "frequency_penalty": 0.4},
]


@pytest.mark.parametrize("more", [[], [{"compat": "rwkv", "presence_penalty": 0.5}]], ids=["recorded", "and not"])
def test_penalties_bans_and_masks_are_a_part_of_the_recording(engine, monkeypatch, more):
    """Texts give their slots to others, which use all of the pool. In company that cannot be recorded, none is."""
    kinds = [*ADJUSTED, *more]
    params = [SamplingParams(seed=i, temperature=i % 5 / 3, **kinds[i % len(kinds)]) for i in range(60)]
    expected = run(engine, params, 13, slots=5, turn=3)
    eager = []
    monkeypatch.setattr(steps, "sample_rows", lambda *given: eager.append(given) or sample_rows(*given))
    monkeypatch.setattr(decoder, "_capture_for", lambda model: tape)
    for request, other in zip(run(engine, params, 13, slots=5, turn=3), expected, strict=True):
        assert request.tokens == other.tokens
        assert request.logprobs == other.logprobs
    if not more:
        assert len(eager) <= len(params), "only first tokens are sampled without a recording"


def test_a_recording_knows_when_no_token_may_follow(engine, monkeypatch):
    monkeypatch.setattr(decoder, "_capture_for", lambda model: tape)
    none_after = lambda tokens: packed(torch.arange(V) < 9 * (len(tokens) < 2))  # noqa: E731
    failing = lambda tokens: 1 / (2 - len(tokens)) and packed(torch.ones(V))  # noqa: E731
    kinds = [{"allowed_tokens": none_after}, {"allowed_tokens": failing}, {}]
    first, second, third = run(engine, [SamplingParams(seed=1, **kind) for kind in kinds * 2], 6)[3:]
    assert "no token may follow the 2 that were generated" in str(first.error)
    assert isinstance(second.error, ZeroDivisionError)
    assert [len(request.tokens) for request in (first, second, third)] == [2, 2, 6]
