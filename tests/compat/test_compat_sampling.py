"""Single draws of `compat.PIPELINE`: with `exact` the rwkv package's, without it from what its parameters describe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peer_package import rwkv_package

from rwkv_engine import RequestError
from rwkv_engine.compat import PIPELINE, RWKV, sampling


def bare(made, exact=False):
    pipeline = made.__new__(made)
    pipeline.exact = exact
    return pipeline


@pytest.fixture
def theirs(monkeypatch):
    return bare(rwkv_package(monkeypatch).PIPELINE)


def rows(n=6, size=3000, seed=0):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 0.4, 1.0, 1.8])
@pytest.mark.parametrize("top_p", [0, 0.3, 0.85, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 5000])
def test_exact_sampling_equals_the_package(temperature, top_p, top_k, theirs):
    ours = bare(PIPELINE, exact=True)
    ties = rows()
    ties[:, 1::2] = ties[:, ::2]
    for logits in (*rows(), *ties):
        np.random.seed(3)
        expected = [theirs.sample_logits(logits, temperature, top_p, top_k) for _ in range(8)]
        after = np.random.random()
        np.random.seed(3)
        assert [ours.sample_logits(logits, temperature, top_p, top_k) for _ in range(8)] == expected
        assert np.random.random() == after


@pytest.mark.parametrize("how", [(1.0, 0.85, 0), (0.7, 0.9, 40), (0, 0.5, 0)])
def test_exact_sampling_uses_the_same_numbers(how, theirs, monkeypatch):
    seen = []
    monkeypatch.setattr(np.random, "choice", lambda a, p: seen.append((a, p.dtype, p.tobytes())) or 0)
    for logits in rows():
        for pipeline in (theirs, bare(PIPELINE, exact=True)):
            pipeline.sample_logits(logits, *how)
        assert seen[-1] == seen[-2]


@pytest.fixture
def drawn_from(monkeypatch):
    """The probabilities, of the package and of ours: `drawn_from(pipeline, logits, temperature, top_p, top_k)`."""
    seen = []
    monkeypatch.setattr(np.random, "choice", lambda a, p: seen.append(p) or 0)
    monkeypatch.setattr(sampling, "inverse_cdf", lambda p, u: seen.append(p[0].numpy()) or torch.zeros(1))

    def drawn(pipeline, logits, *how):
        pipeline.sample_logits(logits.clone(), *how)
        return seen[-1] / seen[-1].sum()

    return drawn


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.8])
@pytest.mark.parametrize("top_p", [0.3, 0.85])
@pytest.mark.parametrize("top_k", [0, 1, 7])
def test_by_default_the_distribution_is_the_packages(temperature, top_p, top_k, theirs, drawn_from):
    """Where nothing is broken there: the order of the steps is the package's."""
    for logits in rows():
        expected = drawn_from(theirs, logits, temperature, top_p, top_k)
        got = drawn_from(bare(PIPELINE), logits, temperature, top_p, top_k)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-12)


def test_top_p_of_one_is_off(theirs, drawn_from):
    logits = rows(40)
    assert any((drawn_from(theirs, row, 1.0, 1.0, 0) > 0).sum() == 1 for row in logits), "the quirk is gone there"
    for row in logits:
        got = drawn_from(bare(PIPELINE), row, 1.0, 1.0, 0)
        np.testing.assert_allclose(got, torch.softmax(row.double(), -1).numpy(), rtol=1e-9)


def test_top_p_keeps_only_as_many_tied_tokens_as_it_needs(theirs, drawn_from):
    logits = torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0])
    kept = {
        name: np.flatnonzero(drawn_from(pipeline, logits, 1.0, 0.7, 0)).tolist()
        for name, pipeline in (("theirs", theirs), ("ours", bare(PIPELINE)))
    }
    assert kept == {"theirs": [0, 1, 2, 3, 4], "ours": [0, 1]}


@pytest.mark.parametrize("how", [(0, 0.85, 0), (1.0, 0, 0), (1.0, 0.0, 5), (0, 1.0, 0)])
def test_greedy_sampling_uses_no_random_number(how):
    logits = torch.zeros(50)
    logits[[7, 9]] = 3.0
    np.random.seed(1)
    assert {bare(PIPELINE).sample_logits(logits, *how) for _ in range(20)} == {7}
    drawn = np.random.random()
    np.random.seed(1)
    assert drawn == np.random.random()


def test_a_numpy_seed_repeats_the_samples():
    ours, logits = bare(PIPELINE), rows()[0]

    def draws(seed):
        np.random.seed(seed)
        return [ours.sample_logits(logits, 1.5, 1.0) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


@pytest.mark.slow
def test_tokens_come_as_often_as_they_are_likely():
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf, 1.5])
    np.random.seed(0)
    n = 4000
    counts = np.bincount([bare(PIPELINE).sample_logits(logits, 2.0, 1.0, 3) for _ in range(n)], minlength=5)
    p = torch.softmax(torch.tensor([-torch.inf, 1.0, 2.0, -torch.inf, 1.5]) / 2, 0).numpy()
    assert (np.abs(counts - n * p) <= 4 * np.sqrt(n * p)).all()


@pytest.mark.parametrize("exact", [True, False])
def test_logits_that_are_nan_or_infinite_are_refused(exact):
    ours = bare(PIPELINE, exact)
    for value, message in ((torch.nan, "NaN"), (torch.inf, "NaN or infinity"), (-torch.inf, "every token is banned")):
        logits = torch.full((9,), value)
        with pytest.raises(RequestError, match=message):
            ours.sample_logits(logits)
    with pytest.raises(RequestError, match=r"got shape \(1, 9\)"):
        ours.sample_logits(torch.zeros(1, 9))


@pytest.mark.parametrize("how", [(-1, 0.5, 0), (1.0, 1.5, 0), (1.0, 0.5, -1), (float("nan"), 0.5, 0)])
def test_parameters_out_of_range_are_refused(how):
    with pytest.raises(RequestError, match="got"):
        bare(PIPELINE).sample_logits(torch.zeros(9), *how)


@pytest.mark.parametrize("exact", [False, True])
def test_logits_may_be_an_array_and_anything_else_is_refused(exact, tales):
    pipeline = PIPELINE(RWKV("tales", "cpu fp32", verbose=False), tales.source / "tokenizer.json", exact)
    logits = np.full(2048, -5.0, dtype=np.float32)
    logits[7] = 50
    assert pipeline.sample_logits(logits) == 7
    for wrong in ("text", None, [1, 2], np.array(["a"]), np.array([])):
        with pytest.raises(RequestError, match="logits: got"):
            pipeline.sample_logits(wrong)


@pytest.mark.parametrize("exact", [False, True])
def test_wrong_texts_and_ids_are_refused(exact, tales):
    pipeline = PIPELINE(RWKV("tales", "cpu fp32", verbose=False), tales.source / "tokenizer.json", exact)
    for token in (-1, 2048):
        with pytest.raises(RequestError, match=f"token id {token}, expected ids from 0 to 2047"):
            pipeline.decode([token])
    for text in (5, None, "\udcff"):
        with pytest.raises(RequestError, match="x: expected text"):
            pipeline.generate(text)
