from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rwkv_engine import RWKV, Checkpoint, RequestError, State, Strategy
from rwkv_engine.runtime import load_model
from rwkv_engine.runtime.ragged import read_ragged, read_texts

LENGTHS = [3, 1, 7, 3, 40, 2]


@pytest.fixture(scope="module")
def engine(each_version):
    return RWKV.from_pretrained(each_version).engine


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(33, (length,), generator=generator) for length in LENGTHS]


@pytest.fixture(scope="module")
def exact(each_version):
    """The same model in float64."""
    strategy = Strategy.parse("cpu fp32")
    return load_model(Checkpoint.open(each_version), strategy, trainable=True).requires_grad_(False).double()


def error(got, expected):
    """Root mean square, relative."""
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.mark.parametrize("full_output", [True, False])
@pytest.mark.parametrize("begun", [False, True])
def test_each_text_gives_the_same_result_as_alone(full_output, begun, engine, exact, texts):
    """Up to rounding: it is no more than twice as far from float64 as the text alone."""
    state = engine.initial_state(len(texts))
    if begun:
        _, state = engine.forward(torch.arange(12).view(6, 2), state)
    before = state.clone()
    outputs, after = read_ragged(lambda ids, state: engine.forward(ids, state, full_output), texts, state)
    assert after.position.tolist() == [n + 2 * begun for n in LENGTHS]
    in_float64 = State({name: field.double() for name, field in before.fields.items()}, before.position)
    alone, expected = (
        [run(text[None], given.rows(slice(i, i + 1)), full_output) for i, text in enumerate(texts)]
        for run, given in ((engine.forward, before), (exact, in_float64))
    )
    assert [output.shape for output in outputs] == [logits[0].shape for logits, _ in alone]
    logits = torch.cat([logits[0].flatten() for logits, _ in expected])
    ours = torch.cat([output.flatten() for output in outputs])
    theirs = torch.cat([logits[0].flatten() for logits, _ in alone])
    assert error(ours, logits) <= 2 * error(theirs, logits) < 1e-5
    for name, field in after.fields.items():
        ends, theirs = (torch.cat([state.fields[name] for _, state in results]) for results in (expected, alone))
        assert error(field, ends) <= 2 * error(theirs, ends) < 1e-5, name
    assert all(torch.equal(getattr(state, name), getattr(before, name)) for name in state.fields), (
        "the given one is unchanged"
    )


@pytest.mark.parametrize("strategy", ["cpu fp32", "cpu fp32i8", "cpu fp32 *1 -> cpu bf16"])
@pytest.mark.parametrize("lengths", [LENGTHS, [1], [5, 5, 5], [2, 9, 2, 9, 1]])
def test_texts_of_one_pass_have_the_bits_of_texts_alone(strategy, lengths, each_version):
    engine = RWKV.from_pretrained(each_version, strategy).engine
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(33, (length,), generator=generator) for length in lengths]
    with torch.no_grad():
        _, state = engine.model.read(torch.arange(2 * len(texts)).view(-1, 2), engine.initial_state(len(texts)))
        before = state.clone()
        hidden, after = read_texts(engine.model.read, texts, state)
        assert after.position.tolist() == [n + 2 for n in lengths]
        for i, text in enumerate(texts):
            alone, state_alone = engine.model.read(text[None], before.rows(slice(i, i + 1)))
            assert torch.equal(hidden[i], alone[0])
            assert all(torch.equal(getattr(after, name)[i], getattr(state_alone, name)[0]) for name in state.fields)
    assert all(torch.equal(getattr(state, name), getattr(before, name)) for name in state.fields), "it was modified"


def test_gradients_of_texts_of_one_pass_are_the_sums_of_theirs(each_version, texts):
    model = load_model(Checkpoint.open(each_version), Strategy.parse("cpu fp32"), trainable=True).requires_grad_()

    def gradients(outputs):
        model.zero_grad()
        sum(x.square().sum() for x in outputs).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    one = State.initial(model.config, 1)
    together = gradients(read_texts(model.read, texts, State.initial(model.config, len(texts)))[0])
    apart = gradients([model.read(text[None], one)[0] for text in texts])
    assert together.keys() == apart.keys()
    assert len(together) > 20
    for name, expected in apart.items():
        assert torch.allclose(together[name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), name


def test_states_of_two_models_are_not_joined(engine):
    one = engine.initial_state()
    _, of_model = engine.forward(torch.tensor([[1]]), one)
    assert State.join([one, of_model]).fingerprint == of_model.fingerprint
    assert State.join([one, of_model]).batch == 2
    other = replace(of_model, fingerprint="other")
    with pytest.raises(RequestError, match="states of 2 models cannot be joined"):
        State.join([of_model, other])
