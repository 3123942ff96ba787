"""The scheduler where decoding steps are recorded, as CUDA graphs are, without CUDA."""

from __future__ import annotations

import oracle
import pytest
from checkpoint_files import save_pth
from generation.alone import alone
from oracle import Shape
from tape import tape

from rwkv_engine import RWKV
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.runtime import decoder
from rwkv_engine.runtime.decoder import BUCKETS

V = 33


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    weights = oracle.random_weights(Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=V))
    return RWKV.from_pretrained(save_pth(weights, tmp_path_factory.mktemp("model") / "m.pth")).engine


def run(engine, all_params, most):
    """Requests of one after the other length, so that every number of rows occurs."""
    scheduler = Scheduler(engine.model)
    requests = []
    for i, params in enumerate(all_params):
        requests.append(Request([1 + i % 7] * (1 + i % 3), Sampler(params), 1 + i % most, sample=i))
        scheduler.add(requests[-1])
    scheduler.wait(lambda: all(request.finish_reason for request in requests))
    return requests


def test_a_thousand_temperatures_take_at_most_three_recordings_for_each_bucket(engine, monkeypatch):
    """Greedy texts, cuts and penalties among them."""
    recorded = []

    def counting(function):
        recorded.append(function)
        return function

    monkeypatch.setattr(decoder, "_capture_for", lambda model: counting)
    kinds = [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"presence_penalty": 0.5}]
    params = [SamplingParams(seed=i, temperature=i / 500, **kinds[i % 5]) for i in range(1000)]
    requests = run(engine, params, 5)
    assert len({request.sampler.params.temperature for request in requests}) == 1000
    assert 0 < len(recorded) <= 3 * len(BUCKETS)


@pytest.mark.parametrize("kinds", [[{}, {"logprobs": 2}], [{}, {"presence_penalty": 0.5}, {"drafts": 3}]], ids=str)
def test_texts_of_recorded_steps_do_not_depend_on_their_company(engine, monkeypatch, kinds):
    """Where no text has penalties, all tokens are sampled by the recording."""
    monkeypatch.setattr(decoder, "_capture_for", lambda model: tape)
    params = [SamplingParams(seed=i, temperature=i / 10, top_p=0.95, **kinds[i % len(kinds)]) for i in range(20)]
    for request, of_text in zip(run(engine, params, 11), params, strict=True):
        expected = alone(engine, request.prompt, of_text, request.max_new_tokens, None, request.sample)
        assert request.tokens == expected.tokens
        assert request.logprobs == expected.logprobs
