"""Our engine as what is measured: each call does the work that it is timed for."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT

from rwkv_engine.benchmark.subject import GREEDY, Ours

TALES = ROOT / "rwkv_engine" / "assets" / "tales"
IDS = [7, 300, 41, 5, 900]


@pytest.fixture(scope="module")
def ours():
    return Ours(TALES, "cpu fp32")


def test_go_to_keeps_the_states_of_its_positions(ours, tales):
    told = []
    ours.go_to(IDS, [3, 12], lambda done, total: told.append((done, total)))
    assert told == [(3, 12), (8, 12), (12, 12)]
    ours.at(12)
    assert ours._state.position.tolist() == [12]
    text = [*IDS[:3], *IDS, *IDS[:4]]
    torch.testing.assert_close(ours._state.wkv_max, tales.forward(text)[1].wkv_max, rtol=1e-4, atol=1e-5)
    ours.decode([1, 2])
    assert ours._state.position.tolist() == [14]
    ours.at(3)
    assert ours._state.position.tolist() == [3]


def test_a_batch_continues_each_sequence_with_its_own_greedy_tokens(ours, monkeypatch):
    """More sequences than a decode step takes use another path, with the same tokens."""
    read = []
    run = ours._decoder.run
    monkeypatch.setattr(ours._decoder, "run", lambda *arguments: read.append(run(*arguments)))
    slots = ours.take(IDS)
    assert len(slots) == 5
    ours.step(IDS, slots, 3)
    ours.free(slots)
    [together] = read
    assert together.shape == (5, 3)

    chosen = []
    forward = ours.model.engine.forward

    def watching(tokens, state):
        chosen.append(tokens)
        return forward(tokens, state)

    many = [IDS[i % 5] for i in range(20)]
    assert ours.take(many) == []
    monkeypatch.setattr(ours.model.engine, "forward", watching)
    ours.step(many, [], 3)
    ours.free([])
    assert len(chosen) == 3
    assert torch.equal(torch.cat(chosen[1:], 1)[:5], together[:, :2])


def test_texts_of_the_scheduler_have_the_tokens_of_a_batch(ours):
    slots = ours.take(IDS)
    expected = ours._decoder.run(torch.tensor(IDS), slots, 7, GREEDY).tolist()
    ours.free(slots)
    texts = ours.begin(IDS)
    assert [text.tokens for text in texts] == [row[:1] for row in expected]
    for steps in (2, 4):
        ours.advance(texts, steps)
    assert [text.tokens for text in texts] == expected
    ours.end(texts)
    assert [text.finish_reason for text in texts] == ["aborted"] * 5


def test_zeros_are_those_that_the_kernels_skip(ours, monkeypatch):
    found = ours.zeros(IDS * 8)
    assert len(found) == 5
    assert all(0.5 < share < 0.99 for share in found)  # a trained model
    monkeypatch.setattr(type(ours.model.engine.model.blocks[0]), "is_packed", False)
    assert ours.zeros(IDS) == [0.0] * 5


def test_write_generates_token_ids(ours):
    written = ours.write(20, lambda done, total: None)
    assert len(written) == 20
    assert len(set(written)) > 5
