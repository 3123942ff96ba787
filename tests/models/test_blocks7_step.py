"""All layers of RWKV-7 in one operator: the reference, in every format, and the same bits however rows are divided."""

from __future__ import annotations

import sys

import numpy as np
import oracle7
import pytest
import torch
from oracle7 import Shape
from torch.nn import functional as F

from rwkv_engine import Checkpoint, Strategy
from rwkv_engine.core.state import State
from rwkv_engine.models import rwkv7
from rwkv_engine.models.rwkv7_fixed import STATE
from rwkv_engine.ops import Blocks7Step, blocks7_step
from rwkv_engine.ops.blocks7_step import blocks7_step_reference
from rwkv_engine.ops.in_floats import rows_in_floats
from rwkv_engine.runtime import Engine, load_model
from rwkv_engine.runtime.decoder import Decoder

# About twice what float32 sums in another order differ by; and, with quantised weights, the rounding of activations to
# 16-bit integers, which the reference does not do in the value matrix.
FORMATS = {"cpu fp32": 3e-6, "cpu bf16": 3e-6, "cpu fp16": 3e-6, "cpu fp32i8": 2e-4, "cpu bf16i4": 2e-4}
SHAPES = [
    Shape(1, 1, 8, 9, 9, (1, 1, 1, 1)),
    Shape(3, 3, 32, 100, 21, (5, 3, 7, 18)),
    Shape(2, 2, 64, 300, 21, (16, 33, 8, 40)),
    Shape(2, 1, 128, 130, 12, (9, 32, 17, 5)),
    Shape(2, 3, 20, 77, 12, (3, 2, 1, 4)),  # heads are not whole vectors
]
LARGE = Shape(2, 5, 64, 900, 12, (20, 20, 12, 50))  # its loops are divided among threads
# In the last two, rows begin from: old states, the row before, their own slot, and a row further up, twice.
BATCHES = [
    (1, None, None),
    (3, [5, 0, 2], None),
    (16, None, None),
    (16, list(range(1, 17)), list(range(16))),
    (6, [5, 0, 2, 7, 1, 8], [3, 5, 2, 2, 7, 2]),
]


def loaded(strategy: str, shape: Shape, tmp_path):
    weights = {name: torch.from_numpy(value) for name, value in oracle7.random_weights(shape).items()}
    torch.save(weights, tmp_path / "m.pth")
    model = load_model(Checkpoint.open(tmp_path / "m.pth"), Strategy.parse(strategy))
    if not model.layers[0].is_packed:
        pytest.skip("needs compiled kernels: without them no matrices are packed")
    return model


def step_of(model, batch: int, slots: list[int] | None = None, before: list[int] | None = None) -> Blocks7Step:
    """A step of all layers from random x and states, which lie in a pool if there are slots."""
    generator = torch.Generator().manual_seed(batch)
    fixed = [block._fixed for block in model.layers]
    rows = batch if slots is None else max([*slots, *(before or [])]) + 2
    fields = State.initial(model.config, rows).fields
    state = [
        torch.randn(rows, *fields[name].shape[2:], generator=generator) * (0.3 if name == "wkv" else 1)
        for _ in fixed
        for name in STATE
    ]
    return Blocks7Step(
        torch.randn(batch, model.config.n_embd, generator=generator),
        torch.full((batch, model.config.n_att), torch.nan),
        1e-5,
        [tensor for layer in fixed for tensor in layer.layer],
        [tensor for layer in fixed for tensor in layer.scales],
        state,
        None if slots is None else torch.tensor(slots),
        None if before is None else torch.tensor(before),
    )


def run(function, step: Blocks7Step) -> list[torch.Tensor]:
    """What a function returns, and the values of layer 0 and the states after it; the step's own are not modified."""
    first, state = step.first.clone(), [t.clone() for t in step.state]
    return [function(step._replace(first=first, state=state)), first, *state]


def product_in_float32(x, rows, outputs, scales):
    """`linear_many` with the activations of the step: those of many rows are rounded to bfloat16 in some formats."""
    return F.linear(x, rows_in_floats(rows, outputs, scales).float())


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest difference of a tensor, relative to its largest number."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("strategy", FORMATS)
@pytest.mark.parametrize("shape", [SHAPES[1], *(pytest.param(s, marks=pytest.mark.slow) for s in [*SHAPES, LARGE])])
def test_the_kernel_is_the_reference(shape, strategy, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["rwkv_engine.ops.blocks7_step"], "linear_many", product_in_float32)
    model = loaded(strategy, shape, tmp_path)
    for batch in BATCHES:
        step = step_of(model, *batch)
        ours, expected = run(blocks7_step, step), run(blocks7_step_reference, step)
        assert distance(ours, expected) < FORMATS[strategy], batch
        assert not torch.equal(step.state[0], expected[2]), "the step does something"
        if step.slots is not None:
            others = [i for i in range(len(step.state[0])) if i not in step.slots.tolist()]
            assert same([t[others] for t in ours[2:]], [t[others] for t in step.state])


@pytest.mark.parametrize("strategy", [*FORMATS])
def test_bits_depend_neither_on_threads_nor_on_other_rows(strategy, tmp_path):
    model = loaded(strategy, LARGE, tmp_path)
    threads = torch.get_num_threads()
    try:
        for batch in BATCHES:
            step = step_of(model, *batch)
            torch.set_num_threads(1)
            expected = run(blocks7_step, step)
            for n in (2, 3):
                torch.set_num_threads(n)
                assert same(run(blocks7_step, step), expected), (batch, n)
    finally:
        torch.set_num_threads(threads)
    step = step_of(model, 16)
    whole = run(blocks7_step, step)
    for rows in (slice(3, 4), slice(3, 6), slice(0, 7), slice(8, 16)):
        part = step._replace(x=step.x[rows], first=step.first[rows], state=[t[rows] for t in step.state])
        assert same(run(blocks7_step, part), [t[rows] for t in whole]), rows


def test_tokens_of_one_text_take_turns(tmp_path):
    """A chain, where each row begins from the slot of the row before, gives the bits of one step after the other."""
    model = loaded("cpu fp32i8", SHAPES[1], tmp_path)
    step = step_of(model, 5, [1, 2, 3, 4, 5], [0, 1, 2, 3, 4])
    chained = run(blocks7_step, step)
    state = [t[:1].clone() for t in step.state]
    for b in range(5):
        one = Blocks7Step(step.x[b : b + 1], step.first[b : b + 1].clone(), *step[2:5], state)
        assert torch.equal(blocks7_step(one)[0], chained[0][b])
        assert same([t[0] for t in state], [t[b + 1] for t in chained[2:]])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_reference_is_the_equations(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(rwkv7, "blocks7_step", blocks7_step_reference)
    model = loaded("cpu fp32", shape, tmp_path)
    tokens = [i % shape.n_vocab for i in (3, 1, 4, 1, 5, 9, 2, 6)]
    expected, end = oracle7.forward(oracle7.random_weights(shape), tokens)
    layers = list(State.initial(model.config, 1).layers())
    logits = [model.step(torch.tensor([token]), layers)[0].numpy() for token in tokens]
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    for name in STATE:
        after = np.stack([layer[name][0].numpy() for layer in layers])
        assert np.abs(after - end[name]).max() < 1e-4 * np.abs(end[name]).max()


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu fp32 *1 -> cpu fp32i8 *1 -> cpu bf16"])
def test_a_model_decodes_by_it_alone_and_in_a_pool(strategy, tmp_path, monkeypatch):
    model = loaded(strategy, SHAPES[1], tmp_path)
    calls = []
    monkeypatch.setattr(rwkv7, "whole_fields", lambda *_: None)  # with it, see test_prepared.py
    monkeypatch.setattr(rwkv7, "blocks7_step", lambda step: calls.append(len(step.parameters)) or blocks7_step(step))
    tokens, state = torch.tensor([[3], [7], [0]]), State.initial(model.config, 3)
    decoder = Decoder(model)
    assert decoder.chains
    slots = decoder.pool.take(state)
    for i in range(3):
        logits, state = Engine(model).forward(tokens + i, state)
        assert torch.equal(decoder.step(tokens[:, 0] + i, slots), logits)
    assert set(calls) == {3 * 28}, "one call for all layers"


def test_a_single_layer_is_a_step_too(tmp_path):
    model = loaded("cpu fp32", SHAPES[1], tmp_path)
    ours, theirs = (list(State.initial(model.config, 2).layers()) for _ in range(2))
    x = torch.randn(2, model.config.n_embd)
    expected, _ = model.block.steps(model.layers, x, ours, None)
    first = None
    for block, state in zip(model.layers, theirs, strict=True):
        x, first = block.step(x, state, None, first)
    assert torch.equal(x, expected)
    assert all(same([*a.values()], [*b.values()]) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": 83}, "expected 28 parameters, 3 states and 6 scales for each layer, got 83, 9 and 18"),
        ({"state": 8}, "got 84, 8 and 18"),
        ({"scales": 17}, "got 84, 9 and 17"),
        ({"x": torch.zeros(3)}, r"x: expected shape \(B, C\), got \[3\]"),
        ({"first": torch.zeros(3, 96)}, r"first: expected contiguous \(2, A\), got shape \[3, 96\]"),
        ({"first": torch.zeros(2, 95)}, "layer 0: r_k: expected shape .* with 95 numbers"),
        ({"slots": torch.tensor([0, 4])}, "slots: row 1 has slot 4, expected one of the 2 rows"),
        ({"before": torch.tensor([0, 1])}, "before: expected none without slots"),
        (
            {"slots": torch.tensor([0, 1]), "before": torch.tensor([-1, 1])},
            "before: row 0 has slot -1, expected one of the 2 rows",
        ),
        ({28 + 22: torch.zeros(5, 1, 16, 16, 1)}, "layer 1: output: expected 96 x 96 in contiguous tiles"),
        ({28 + 7: torch.zeros(6, 1, 16, 16, 1)}, "layer 1: w2: expected 96 x 32 in contiguous tiles"),
        ({28 + 6: torch.zeros(96, 5)}, "layer 1: w1: expected tiles of floats"),
        ({28 + 27: torch.zeros(100, 39)}, "layer 1: ffn value: expected contiguous"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_named_before_anything_is_written(change, message, tmp_path):
    step = step_of(loaded("cpu fp32", SHAPES[1], tmp_path), 2)
    state, before = step.state, [t.clone() for t in step.state]
    for name, value in change.items():
        if isinstance(name, int):
            step = step._replace(parameters=[value if i == name else p for i, p in enumerate(step.parameters)])
        else:
            step = step._replace(**{name: getattr(step, name)[:value] if isinstance(value, int) else value})
    with pytest.raises(RuntimeError, match=message):
        blocks7_step(step)
    assert same(state, before)


def test_a_state_that_does_not_fit_is_named(tmp_path):
    step = step_of(loaded("cpu fp32", SHAPES[1], tmp_path), 2)
    for wrong in (torch.zeros(2, 3, 32, 31), torch.zeros(3, 3, 32, 32)):
        with pytest.raises(RuntimeError, match=r"layer 0: wkv: expected shape \(2, 3, 32, 32\)"):
            blocks7_step(step._replace(state=[step.state[0], wrong, *step.state[2:]]))
    with pytest.raises(RuntimeError, match="wkv: expected rows without gaps"):
        blocks7_step(step._replace(state=[step.state[0], step.state[1].mT, *step.state[2:]]))


def test_no_layers_return_x_as_another_tensor():
    x = torch.randn(2, 8)
    y = blocks7_step(Blocks7Step(x, torch.zeros(2, 8), 1e-5, [], [], []))
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()


def test_gradients_are_refused(tmp_path):
    step = step_of(loaded("cpu fp32", SHAPES[0], tmp_path), 1)
    step.state[1].requires_grad_(True)
    with pytest.raises(RuntimeError, match="no gradient; load the model with trainable=True"):
        blocks7_step(step)


@pytest.mark.slow
def test_opcheck(tmp_path):
    cases = [("cpu bf16", None, None), ("cpu fp32i8", [1, 0], None), ("cpu fp32", [1, 0], [2, 1])]
    for strategy, slots, before in cases:
        step = step_of(loaded(strategy, SHAPES[1], tmp_path), 2, slots, before)
        torch.library.opcheck(torch.ops.rwkv_engine.blocks7_step.default, tuple(step))
