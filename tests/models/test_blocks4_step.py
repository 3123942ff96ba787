"""All layers in one operator: the same bits as the operators of each half, in every format, and in a whole model."""

from __future__ import annotations

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape

from rwkv_engine import Checkpoint, Strategy
from rwkv_engine.core.state import State
from rwkv_engine.models import rwkv4
from rwkv_engine.ops import Blocks4Step, blocks4_step
from rwkv_engine.ops.blocks4_step import blocks4_step_reference
from rwkv_engine.runtime import Engine, load_model
from rwkv_engine.runtime.decoder import Decoder

FORMATS = ["cpu fp32", "cpu bf16", "cpu fp16", "cpu fp32i8", "cpu fp32i4"]  # some matrices of the last one stay int8
SHAPES = [Shape(1, 8, 8, 8, 9), Shape(3, 40, 56, 100, 21), Shape(4, 33, 17, 65, 12)]
LARGE = Shape(2, 288, 288, 800, 12)  # its loops are divided among threads


def loaded(strategy: str, shape: Shape, tmp_path):
    path = save_pth(oracle.random_weights(shape), tmp_path / "m.pth")
    return load_model(Checkpoint.open(path), Strategy.parse(strategy))


def step_of(model, batch: int, slots: list[int] | None = None, before: list[int] | None = None) -> Blocks4Step:
    """A step of all layers from random x and states, which lie in a pool if there are slots."""
    if not model.layers[0].is_packed:
        pytest.skip("needs compiled kernels: without them no matrices are packed")
    generator = torch.Generator().manual_seed(batch)
    fixed = [block._fixed for block in model.layers]
    rows = batch if slots is None else max([*slots, *(before or [])]) + 2
    state = []
    for _ in fixed:
        fields = State.initial(model.config, rows).fields
        for name in rwkv4._STATE:
            values = torch.randn(rows, fields[name].shape[-1], generator=generator)
            state.append(values.abs() + 1 if name == "wkv_den" else values)
    return Blocks4Step(
        torch.randn(batch, model.config.n_embd, generator=generator),
        1e-5,
        [tensor for layer in fixed for tensor in layer.parameters],
        [tensor for layer in fixed for tensor in layer.scales],
        state,
        None if slots is None else torch.tensor(slots),
        None if before is None else torch.tensor(before),
    )


def run(function, step: Blocks4Step) -> list[torch.Tensor]:
    """What a function returns, and the states after it; the step's own are not modified."""
    state = [t.clone() for t in step.state]
    return [function(step._replace(state=state)), *state]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", FORMATS)
@pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)
def test_the_bits_are_those_of_the_halves(shape, strategy, tmp_path):
    model = loaded(strategy, shape, tmp_path)
    threads = torch.get_num_threads()
    try:
        # In the last case rows begin from: an old state, the row before, their own slot, and a row further up, twice.
        for batch, slots, before in [
            (1, None, None),
            (3, [5, 0, 2], None),
            (16, None, None),
            (16, list(range(1, 17)), list(range(16))),
            (6, [5, 0, 2, 7, 1, 8], [3, 5, 2, 2, 7, 2]),
        ]:
            step = step_of(model, batch, slots, before)
            expected = run(blocks4_step_reference, step)
            for n in (1, 2, 3, 4):
                torch.set_num_threads(n)
                assert same(run(blocks4_step, step), expected), (batch, n)
            assert not torch.equal(step.state[0], expected[1]), "the step does something"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "strategy",
    [*(pytest.param(text, marks=pytest.mark.slow) for text in FORMATS), "cpu fp32 *1 -> cpu fp32i8 *1 -> cpu bf16"],
)
def test_a_model_decodes_the_bits_of_its_layers(strategy, tmp_path, monkeypatch):
    model = loaded(strategy, SHAPES[1], tmp_path)
    tokens = torch.tensor([[3], [7], [0]])

    def decoded() -> list[torch.Tensor]:
        state = State.initial(model.config, len(tokens))
        decoder = Decoder(model)
        slots = decoder.pool.take(state)
        outputs = []
        for i in range(3):
            logits, state = Engine(model).forward(tokens + i, state)
            outputs += [logits, *state.fields.values(), decoder.step(tokens[:, 0] + i, slots)]
            assert torch.equal(outputs[-1], logits), "a pool gives the same"
        return outputs

    ours = decoded()
    monkeypatch.setattr(rwkv4, "whole_fields", lambda *_: None)  # the operator gets the parameters with each token
    assert same(ours, decoded())
    monkeypatch.setattr(rwkv4, "blocks4_step", blocks4_step_reference)
    assert same(ours, decoded())


@pytest.mark.slow
def test_a_layer_without_packed_weights_runs_by_itself(tmp_path):
    """Layers may be converted one by one; the others then take the way of single layers."""
    model = loaded("cpu fp32", SHAPES[1], tmp_path)
    state = State.initial(model.config, 1)
    expected, _ = model(torch.tensor([[3]]), state)
    model.layers[1].__dict__["_fixed"] = None  # as without packed weights
    logits, _ = model(torch.tensor([[3]]), state)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": 53}, "expected 18 parameters, 5 states and 7 scales for each layer, got 53, 15 and 21"),
        ({"state": 14}, "got 54, 14 and 21"),
        ({"scales": 20}, "got 54, 15 and 20"),
        ({"x": torch.zeros(3)}, r"x: expected shape \(B, C\), got \[3\]"),
        ({"slots": torch.tensor([0, 4])}, "slots: row 1 has slot 4, expected one of the 2 rows"),
        ({"before": torch.tensor([0, 1])}, "before: expected none without slots"),
        (
            {"slots": torch.tensor([0, 1]), "before": torch.tensor([-1, 1])},
            "before: row 0 has slot -1, expected one of the 2 rows",
        ),
        ({28: torch.zeros(5, 1, 16, 16, 1)}, "layer 1: output: expected 40 x 56 in contiguous tiles"),
        ({35: torch.zeros(100, 39)}, "layer 1: value: expected contiguous"),
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
        blocks4_step(step)
    assert same(state, before)


def test_no_layers_return_x_as_another_tensor():
    x = torch.randn(2, 8)
    y = blocks4_step(Blocks4Step(x, 1e-5, [], [], []))
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()


def test_gradients_are_refused(tmp_path):
    step = step_of(loaded("cpu fp32", SHAPES[0], tmp_path), 1)
    step.state[2].requires_grad_(True)
    with pytest.raises(RuntimeError, match="no gradient; load the model with trainable=True"):
        blocks4_step(step)
    with torch.no_grad():
        blocks4_step(step)


@pytest.mark.slow
def test_opcheck(tmp_path):
    cases = [("cpu bf16", None, None), ("cpu fp32i8", [1, 0], None), ("cpu fp32", [1, 0], [2, 1])]
    for strategy, slots, before in cases:
        step = step_of(loaded(strategy, SHAPES[1], tmp_path), 2, slots, before)
        torch.library.opcheck(torch.ops.rwkv_engine.blocks4_step.default, tuple(step))
