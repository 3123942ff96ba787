"""Cross-entropy and divergence against the float64 oracle and against torch's own cross_entropy."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from philox import uniform
from torch.nn import functional as F

from rwkv_engine import RWKV, RequestError, TokenizerError, evaluation
from rwkv_engine.evaluation import compare, evaluate, write
from rwkv_engine.ops.draw_tokens import inverse_cdf

BYTES = Shape(n_vocab=256)  # a vocabulary of 256 reads bytes
TEXT = "".join(chr(c) for c in np.random.default_rng(0).choice([*range(32, 127), 0xE9, 0x4E2D], 3000))


def random_model(tmp_path, seed: int = 0, shape: Shape = BYTES) -> tuple[RWKV, dict]:
    weights = oracle.random_weights(shape, seed)
    return RWKV.from_pretrained(save_pth(weights, tmp_path / f"{seed}.pth")), weights


def oracle_logp(weights: dict, ids: list[int]) -> np.ndarray:
    """ln p of what may come after each token but the last, from logits that read all ids at once."""
    logits, _ = oracle.forward(weights, ids[:-1])
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.slow
def test_a_score_is_the_oracles_cross_entropy_over_thousands_of_tokens(tmp_path):
    model, weights = random_model(tmp_path)
    ids = list(TEXT.encode())
    score = evaluate(model, TEXT)
    logp = oracle_logp(weights, ids)
    nats = -logp[np.arange(len(logp)), ids[1:]].sum()
    assert score.nats == pytest.approx(nats, rel=1e-6)
    assert score.n_tokens == score.n_bytes == len(ids) - 1 > 3000  # without an end of text the first is not scored
    assert score.nats_per_byte == pytest.approx(nats / (len(ids) - 1))
    assert score.bits_per_byte == pytest.approx(np.log2(np.exp(score.nats_per_byte)))
    assert score.perplexity == pytest.approx(np.exp(score.nats_per_token))


def test_the_first_token_comes_after_the_end_of_text(tales):
    text = "Once upon a time there was a king who had three daughters, and a wicked fée."
    ids = torch.tensor([tales.tokenizer.end_of_text, *tales.tokenizer.encode(text)])
    logits, _ = tales.forward(ids[:-1], full_output=True)
    score = evaluate(tales, text)
    assert score.nats == pytest.approx(F.cross_entropy(logits.double(), ids[1:], reduction="sum").item(), rel=1e-6)
    assert score.n_tokens == len(ids) - 1
    assert score.n_bytes == len(text) + 1


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_change_nothing_and_no_more_logits_are_asked_for(chunk, tmp_path, monkeypatch):
    model, _ = random_model(tmp_path)
    whole = evaluate(model, TEXT[:700])
    lengths, forward = [], model.forward

    def watched(tokens, *arguments, **options):
        lengths.append(len(tokens))
        return forward(tokens, *arguments, **options)

    monkeypatch.setattr(evaluation, "CHUNK", chunk)
    monkeypatch.setattr(evaluation, "ROWS", 5)
    monkeypatch.setattr(model, "forward", watched)
    progress = []
    assert evaluate(model, TEXT[:700], lambda *done: progress.append(done)).nats == pytest.approx(whole.nats, rel=1e-6)
    assert max(lengths) <= chunk
    assert sum(lengths) == whole.n_tokens
    assert progress[-1] == (whole.n_tokens, whole.n_tokens)


def test_a_divergence_is_that_of_the_oracles_distributions(tmp_path):
    reference, first = random_model(tmp_path, seed=0)
    tested, second = random_model(tmp_path, seed=1)
    ids = list(TEXT.encode())[:600]
    p, q = oracle_logp(first, ids), oracle_logp(second, ids)
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    found = compare(reference, tested, ids)
    assert found.n_tokens == 599
    assert found.mean == pytest.approx(kl.mean(), rel=1e-5)
    assert found.percentile_99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert found.maximum == pytest.approx(kl.max(), rel=1e-4)
    assert found.n_same == (p.argmax(-1) == q.argmax(-1)).sum()
    assert 0 < found.agreement == found.n_same / 599 < 0.5
    rows = np.arange(599)
    assert found.reference_nats == pytest.approx(-p[rows, ids[1:]].sum(), rel=1e-6)
    assert found.tested_nats == pytest.approx(-q[rows, ids[1:]].sum(), rel=1e-6)


@pytest.mark.slow
def test_a_strategy_does_not_diverge_from_itself_and_bfloat16_does_a_little(tales):
    ids = write(tales, 400)
    same = compare(tales, RWKV.from_pretrained("tales"), ids)
    assert (same.mean, same.percentile_99, same.maximum, same.agreement) == (0, 0, 0, 1)
    assert same.reference_nats == same.tested_nats
    coarse = compare(tales, RWKV.from_pretrained("tales", "cpu bf16"), ids)
    assert 1e-6 < coarse.mean < coarse.percentile_99 <= coarse.maximum < 1e-2
    assert coarse.agreement > 0.95


def test_a_model_generates_samples_of_its_own_distribution(tmp_path):
    model, _ = random_model(tmp_path)
    done = []
    ids = write(model, 50, seed=3, progress=lambda *progress: done.append(progress))
    assert len(ids) == 51
    assert ids[0] == 0
    assert done[0] == (1, 50)
    assert done[-1] == (50, 50)
    logits, _ = model.forward(ids[:-1], full_output=True)
    draws = torch.tensor([uniform(3, 0, position) for position in range(1, 51)], dtype=torch.float64)
    assert inverse_cdf(torch.softmax(logits.double(), -1), draws).tolist() == ids[1:]
    assert write(model, 50, seed=4) != ids


def test_what_cannot_be_scored_is_refused(tales, tmp_path):
    model, _ = random_model(tmp_path)
    for text in ("", "x"):
        with pytest.raises(RequestError, match=f"too short, got {len(text)} characters"):
            evaluate(model, text)
    with pytest.raises(RequestError, match="too short"):
        evaluate(tales, "")
    assert evaluate(tales, "x").n_tokens == 1
    with pytest.raises(RequestError, match="vocabularies of 256 and 2048"):
        compare(model, tales, [0, 1])
    mute, _ = random_model(tmp_path, shape=Shape(n_vocab=33))
    with pytest.raises(TokenizerError):
        evaluate(mute, "x")


def test_non_finite_logits_are_not_scored(tmp_path, monkeypatch):
    model, _ = random_model(tmp_path)
    head = model.engine.model.head
    monkeypatch.setattr(head, "forward", lambda x: x.new_full((*x.shape[:-1], 256), math.nan))
    for measure in (lambda: evaluate(model, "xyz"), lambda: compare(model, model, [1, 2, 3])):
        with pytest.raises(RequestError, match="not finite"):
            measure()
