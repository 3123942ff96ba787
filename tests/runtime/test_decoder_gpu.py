"""On a GPU: recorded steps give what called ones give, bit for bit, and draws those of the CPU."""

from __future__ import annotations

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from conftest import require_gpu
from oracle import Shape
from states import FIELDS

from rwkv_engine import RWKV
from rwkv_engine.generation.draw import Draw
from rwkv_engine.ops import philox_uniform
from rwkv_engine.runtime import Decoder
from rwkv_engine.runtime.bucket import RowSampling
from rwkv_engine.runtime.graph import eager

pytestmark = pytest.mark.gpu
require_gpu()
SHAPE = Shape(n_layer=3, n_embd=64, n_att=64, n_ffn=256, n_vocab=997)
DRAWS = [Draw(0.0), Draw(1.0), Draw(1.3, top_k=40, top_p=0.9, min_p=0.01)]


@pytest.fixture(params=["fp32", "bf16", "fp16"])
def engine(cuda, request, tmp_path):
    path = save_pth(oracle.random_weights(SHAPE), tmp_path / "m.pth")
    return RWKV.from_pretrained(path, f"cuda {request.param}").engine


def read(engine, batch: int):
    tokens = torch.randint(0, SHAPE.n_vocab, (batch, 7), generator=torch.Generator().manual_seed(batch))
    return engine.forward(tokens)


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_recorded_run_equals_a_called_one(engine, batch, draw):
    logits, state = read(engine, batch)
    assert logits.is_cuda
    seeds, samples = torch.full((batch,), 5), torch.arange(batch)
    runs = []
    for capture in (None, eager):
        decoder = Decoder(engine.model, capture=capture)
        slots = decoder.pool.take(state)
        for _ in range(2):
            decoder.pool.load(slots, state)
            drawn = decoder.run(logits.argmax(-1), slots, 50, draw, seeds, samples)
            runs.append((drawn.cpu(), decoder.pool.read(slots), decoder.step(drawn[:, -1], slots).cpu()))
    for drawn, after, last in runs[1:]:
        assert torch.equal(drawn, runs[0][0])
        assert torch.equal(last, runs[0][2])
        for name in (*FIELDS, "position"):
            assert torch.equal(getattr(after, name), getattr(runs[0][1], name))


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_step_with_its_sampling_equals_a_run(engine, batch, draw):
    logits, state = read(engine, batch)
    tokens, decoder = logits.argmax(-1).tolist(), Decoder(engine.model)
    slots = decoder.pool.take(state)
    drawn = decoder.run(torch.tensor(tokens), slots, 50, draw, torch.full((batch,), 5), torch.arange(batch))
    decoder.pool.load(slots, state)
    rows = [RowSampling(5, i, draw.top_k, draw.temperature, draw.top_p, draw.min_p) for i in range(batch)]
    for expected in drawn.t().tolist():
        logits, tokens = decoder.sample(tokens, slots, rows)
        assert tokens == expected
        assert logits.isfinite().all()


def test_the_engine_decodes_over_the_pool_and_changes_no_state_it_is_given(engine):
    assert engine.pooled
    _, state = read(engine, 2)
    before = state.clone()
    first, after = engine.forward(torch.tensor([[1], [2]]), state)
    again, _ = engine.forward(torch.tensor([[1], [2]]), state.to("cpu"))
    assert torch.equal(first, again)
    for name in FIELDS:
        assert torch.equal(getattr(state, name), getattr(before, name))
        assert getattr(after, name).is_cuda
    engine.pooled = False
    functional, _ = engine.forward(torch.tensor([[1], [2]]), state)
    assert torch.equal(first, functional)


def test_draws_are_those_of_the_cpu(cuda):
    rows = [torch.randint(-(2**63), 2**63 - 1, (300,), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert torch.equal(philox_uniform(*(row.cuda() for row in rows)).cpu(), philox_uniform(*rows))
    logits = torch.randn(300, 997, generator=torch.Generator().manual_seed(3)) * 3
    for draw in DRAWS:
        here, there = draw(logits, *rows), draw(logits.cuda(), *(row.cuda() for row in rows)).cpu()
        assert (here != there).sum() <= 1, "an exponential may round differently, so one draw in 10^12 may"
