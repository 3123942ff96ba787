"""RWKV-7's step on the GPU: the operator against its reference, and the model against the oracle and itself."""

from __future__ import annotations

import sys

import numpy as np
import oracle7
import pytest
import torch
from conftest import require_gpu
from gpu.devices import on
from models.test_blocks7_step import BATCHES, FORMATS, SHAPES, distance, loaded, product_in_float32, run, same, step_of

from rwkv_engine.core.state import State
from rwkv_engine.generation import SamplingParams
from rwkv_engine.generation.draw import Draw
from rwkv_engine.ops import Blocks7Step, blocks7_step
from rwkv_engine.ops.blocks7_step import blocks7_step_reference
from rwkv_engine.runtime.decoder import Decoder
from rwkv_engine.runtime.graph import eager

pytestmark = pytest.mark.gpu
require_gpu()
PUBLISHED = oracle7.Shape(3, 12, 64, 3072, 40, (64, 64, 128, 32))  # the widths of 0.1B


def step_on(gpu: str, step: Blocks7Step) -> Blocks7Step:
    return Blocks7Step._make(on(gpu, list(step)))


@pytest.mark.parametrize("strategy", FORMATS)
@pytest.mark.parametrize("shape", [*SHAPES, PUBLISHED], ids=str)
def test_the_kernels_are_the_reference(shape, strategy, gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["rwkv_engine.ops.blocks7_step"], "linear_many", product_in_float32)
    model = loaded(strategy, shape, tmp_path)
    for batch in [*BATCHES, (2, None, None), (7, None, None), (18, None, None)]:
        step = step_of(model, *batch)
        ours, expected = run(blocks7_step, step_on(gpu, step)), run(blocks7_step_reference, step)
        assert distance(on("cpu", ours), expected) < 2 * FORMATS[strategy], batch
        if step.slots is not None:
            others = [i for i in range(len(step.state[0])) if i not in step.slots.tolist()]
            assert same([t.cpu()[others] for t in ours[2:]], [t[others] for t in step.state])


@pytest.mark.parametrize("strategy", FORMATS)
def test_a_rows_bits_in_any_batch_at_any_time(strategy, gpu, tmp_path):
    step = step_on(gpu, step_of(loaded(strategy, PUBLISHED, tmp_path), 16))
    whole = run(blocks7_step, step)
    assert same(run(blocks7_step, step), whole)
    for rows in (slice(3, 4), slice(4, 6), slice(3, 6), slice(0, 7), slice(8, 16)):
        part = step._replace(x=step.x[rows], first=step.first[rows], state=[t[rows] for t in step.state])
        assert same(run(blocks7_step, part), [t[rows] for t in whole]), rows


def test_heads_that_are_too_wide_are_refused(gpu, tmp_path):
    if gpu == "cpu":
        pytest.skip("the CPU has no limit")
    step = step_of(loaded("cpu fp32", oracle7.Shape(1, 1, 320, 9, 9, (1, 1, 1, 1)), tmp_path), 1)
    with pytest.raises(RuntimeError, match="expected heads of at most 256 channels on CUDA, got 320"):
        blocks7_step(step_on(gpu, step))


@pytest.mark.parametrize("strategy", [name.removeprefix("cpu ") for name in FORMATS])
def test_decoding_is_the_oracle_recorded_and_eager(strategy, gpu, tmp_path):
    shape = SHAPES[2]
    model = loaded(f"{gpu} {strategy}", shape, tmp_path)
    tokens = [i % shape.n_vocab for i in (3, 1, 4, 1, 5, 9, 2, 6)]
    state = State.initial(model.config).to(model.device_map.home)
    ids = []
    for capture in ({}, {"capture": eager}):
        decoder = Decoder(model, **capture)
        [slot] = decoder.pool.take(state)
        logits = [decoder.step(torch.tensor([t], device=model.device_map.home), [slot])[0].cpu() for t in tokens]
        first = torch.tensor([0], device=model.device_map.home)
        ids.append(decoder.run(first, [slot], 40, Draw.of(SamplingParams(temperature=0)))[0].tolist())
    assert ids[0] == ids[1]
    if strategy == "fp32":
        expected, _ = oracle7.forward(oracle7.random_weights(shape), tokens)
        assert np.abs(torch.stack(logits).numpy() - expected).max() < 1e-4 * np.abs(expected).max()
