"""The gradients of wkv7 for shapes, outputs and numbers at their ends, against difference quotients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.test_wkv7 import inputs

from rwkv_engine.ops import wkv7
from rwkv_engine.ops.wkv7 import CHECKPOINT_EVERY as EVERY
from rwkv_engine.ops.wkv7 import wkv7_reference


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.sampled_from([1, 2, EVERY - 1, EVERY, EVERY + 1, 2 * EVERY, 2 * EVERY + 1]),
    heads=st.integers(1, 3),
    n=st.integers(1, 9),
    needed=st.sets(st.integers(0, 6), min_size=1),
    seed=st.integers(0, 9),
)
def test_gradients_of_any_shape_and_of_some_arguments(batch, tokens, heads, n, needed, seed):
    """Parts of the text that the backward pass computes again end before, at and after the last token."""
    arguments = inputs(batch, tokens, heads, n, torch.float64, seed)
    for i in needed:
        arguments[i].requires_grad_()
    assert torch.autograd.gradcheck(wkv7, arguments, fast_mode=True)


@pytest.mark.parametrize("wanted", [0, 1])
def test_gradients_of_one_output_alone(wanted):
    """Of y, whose state is thrown away, and of the state."""
    ours, plain = ([x.requires_grad_() for x in inputs(2, 20, 2, 32, torch.float64)] for _ in range(2))
    for function, arguments in ((wkv7, ours), (wkv7_reference, plain)):
        function(*arguments)[wanted].sin().sum().backward()
    for i, (one, other) in enumerate(zip(ours, plain, strict=True)):
        if other.grad is None or not other.grad.any():  # the state does not depend on r
            assert not one.grad.any(), i
        else:
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("lengths", [[3, 3, 1, 20], [1], [17, 17]], ids=str)
def test_gradients_of_texts_of_different_lengths(lengths):
    *tokens, _ = inputs(1, sum(lengths), 2, 8, torch.float64)
    state = inputs(len(lengths), 1, 2, 8, torch.float64)[-1]
    arguments = [x.requires_grad_() for x in (*tokens, state)]
    assert torch.autograd.gradcheck(lambda *x: wkv7(*x, lengths=lengths), arguments, fast_mode=True)


ENDS = {"zero keys": ("kappa", 0), "no decay": ("w", 1), "all is replaced": ("a", 1), "nothing is replaced": ("a", 0)}


@pytest.mark.parametrize(("name", "value"), ENDS.values(), ids=ENDS)
def test_gradients_at_the_ends(name, value):
    arguments = inputs(1, 20, 1, 5, torch.float64)
    arguments[["r", "w", "k", "v", "kappa", "a"].index(name)].fill_(value)
    assert torch.autograd.gradcheck(wkv7, [x.requires_grad_() for x in arguments], fast_mode=True)
