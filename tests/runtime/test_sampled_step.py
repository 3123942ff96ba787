"""Steps that are captured together with the sampling behind them and the copies from and to the host."""

from __future__ import annotations

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from tape import tape

from rwkv_engine import RWKV, RequestError
from rwkv_engine.generation.draw import Draw
from rwkv_engine.runtime import Decoder, bucket
from rwkv_engine.runtime.bucket import RowSampling

SHAPE = Shape(n_layer=2, n_embd=40, n_att=56, n_ffn=72, n_vocab=101)
GREEDY, PLAIN, CUT = Draw(0.0), Draw(1.0), Draw(1.3, top_k=20, top_p=0.9, min_p=0.01)
RUNS = [(GREEDY,), (PLAIN, GREEDY, CUT), (CUT,), (GREEDY,) * 3, (PLAIN,) * 16, (CUT, PLAIN), (GREEDY,)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = save_pth(oracle.random_weights(SHAPE), tmp_path_factory.mktemp("model") / "m.pth")
    return RWKV.from_pretrained(path).engine


def state_of(engine, batch: int):
    tokens = torch.randint(0, SHAPE.n_vocab, (batch, 5), generator=torch.Generator().manual_seed(batch))
    return engine.forward(tokens)[1]


def row(draw: Draw, seed: int = 0, sample: int = 0) -> RowSampling:
    return RowSampling(seed, sample, draw.top_k, draw.temperature, draw.top_p, draw.min_p)


def check(engine, decoder: Decoder) -> None:
    """Batches of several sizes after one another, so that a batch meets what others left in the buffers."""
    for draws in RUNS:
        state, n = state_of(engine, len(draws)), len(draws)
        slots, tokens = decoder.pool.take(state), list(range(n))
        for _ in range(3):
            rows = [row(draw, -5, 2**62 + i) for i, draw in enumerate(draws)]
            expected, state = engine.forward(torch.tensor(tokens).unsqueeze(1), state)
            logits, ids = decoder.sample(tokens, slots, rows)
            assert torch.equal(logits, expected)
            for i, draw in enumerate(draws):
                keys = torch.tensor([-5]), torch.tensor([2**62 + i])
                assert ids[i] == int(draw(logits[i : i + 1], state.position[i : i + 1], *keys))
            tokens = ids
        after = decoder.pool.read(slots)
        for name in (*state.fields, "position"):
            assert torch.equal(getattr(after, name), getattr(state, name))
        decoder.pool.free(slots)


@pytest.mark.parametrize("capture", [lambda function: function, tape], ids=["called", "tape"])
def test_samples_are_those_of_a_draw_behind_each_step(engine, capture):
    check(engine, Decoder(engine.model, capture=capture))


def test_results_are_read_after_the_device_has_done_its_work(engine, monkeypatch):
    """A device that works as late as it may."""
    submitted = []

    def late(function):
        function()
        return lambda: submitted.append(function)

    def wait(device):
        for work in submitted:
            work()
        submitted.clear()

    monkeypatch.setattr(bucket, "wait_for", wait)
    check(engine, Decoder(engine.model, capture=late))


def test_a_size_is_captured_once_greedily_and_once_for_all_other_sampling(engine):
    captured = []
    decoder = Decoder(engine.model, capture=lambda function: captured.append(function) or function)
    slots = decoder.pool.take(state_of(engine, 2))
    for i in range(20):
        decoder.sample([1, 2], slots, [row(Draw(i / 10)), row(CUT if i % 2 else GREEDY)])
    assert len(captured) == 2


def test_where_no_token_can_be_sampled_the_id_is_minus_one(engine):
    state = state_of(engine, 2)
    state.att_shift[1, 0] = torch.nan
    decoder = Decoder(engine.model, capture=tape)
    slots = decoder.pool.take(state)
    for draw in (GREEDY, CUT):
        assert [token < 0 for token in decoder.sample([1, 2], slots, [row(draw)] * 2)[1]] == [False, True]


def test_what_does_not_fit_is_refused(engine):
    decoder = Decoder(engine.model, capture=tape)
    with pytest.raises(RequestError, match=r"got \(1,\) tokens for 2 slots"):
        decoder.sample([1], [0, 1], [row(GREEDY)] * 2)
    with pytest.raises(RequestError, match=r"slots: got \[3, 3\], expected different slots"):
        decoder.sample([1, 2], [3, 3], [row(GREEDY)] * 2)
