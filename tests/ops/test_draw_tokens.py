"""Sampled tokens against the definition of each parameter in plain Python, and the kernel against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine.generation.token_mask import packed
from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops import draw_tokens, philox_uniform
from rwkv_engine.ops.draw_tokens import NONE_ALLOWED, draw_tokens_reference

FUNCTIONS = pytest.mark.parametrize("function", [draw_tokens, draw_tokens_reference])
OFF = (1.0, 0, 1.0, 0.0)


def call(function, logits, rows, draws, allowed=None):
    """`rows`: temperature, top_k, top_p and min_p of each row; `allowed`: (B, V) bool."""
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    floats = [torch.tensor(values, dtype=torch.float64) for values in (temperature, top_p, min_p, draws)]
    numbers = floats[3] if function is draw_tokens else [floats[3]]
    masks = None if allowed is None else torch.stack([packed(row) for row in allowed])
    return function(logits, floats[0], torch.tensor(top_k), *floats[1:3], numbers, masks).tolist()


def defined(logits, temperature, top_k, top_p, min_p, draw):
    """One token, in exact arithmetic as far as it matters: weights are rounded to integers as documented."""
    largest = max(logits)
    if largest == -math.inf:
        return NONE_ALLOWED
    if temperature == 0:
        return logits.index(largest)
    weights = [math.exp((logit - largest) / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda i: (-weights[i], i))[: top_k or None]
    whole = [round(weight * 2**45) for weight in weights]
    total, before, kept = sum(whole[i] for i in order), 0, []
    for i in order:
        if top_p == 1 or before < top_p * total:
            kept.append(i)
        before += whole[i]
    kept = sorted(i for i in kept if weights[i] >= min_p)
    target = min(int(draw * float(sum(whole[i] for i in kept))), sum(whole[i] for i in kept) - 1)
    for i in kept:
        target -= whole[i]
        if target < 0:
            return i


parameters = st.tuples(
    st.sampled_from([0.0, 1e-3, 0.3, 1.0, 1.7, 100.0]),
    st.sampled_from([0, 1, 2, 3, 10, 10_000]),
    st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999999, 1.0]),
    st.sampled_from([0.0, 0.01, 0.4, 1.0]),
)


@FUNCTIONS
@settings(max_examples=150, deadline=None)
@given(st.lists(parameters, min_size=1, max_size=5), st.integers(1, 700), st.sampled_from([0.01, 3.0, 30.0]), st.data())
def test_tokens_are_those_of_the_definition(function, rows, n_vocab, spread, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logits = spread * torch.randn(len(rows), n_vocab, generator=generator)
    if data.draw(st.booleans()):  # many equal ones
        logits = logits.round()
    draws = torch.rand(len(rows), dtype=torch.float64, generator=generator).tolist()
    draws[0] = data.draw(st.sampled_from([draws[0], 0.0, 1 - 2**-53]))
    expected = [defined(row, *own, draw) for row, own, draw in zip(logits.tolist(), rows, draws, strict=True)]
    assert call(function, logits, rows, draws) == expected
    assert call(function, logits.double(), rows, draws) == expected
    # What a mask does not allow is as if it were banned.
    allowed = torch.rand(logits.shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
    banned = logits.double().masked_fill(~allowed, -torch.inf).tolist()
    expected = [defined(row, *own, draw) for row, own, draw in zip(banned, rows, draws, strict=True)]
    assert call(function, logits, rows, draws, allowed) == expected
    assert call(function, logits.double(), rows, draws, allowed) == expected


@pytest.mark.slow
def test_kernel_and_reference_agree_on_a_whole_vocabulary():
    generator = torch.Generator().manual_seed(1)
    logits = 2.5 * torch.randn(16, 50_277, generator=generator)
    for rows in ([OFF] * 16, [(0.8, 0, 0.9, 0.0), (0.7, 40, 0.95, 0.02)] * 8, [(0.0, 0, 1.0, 0.0), OFF] * 8):
        for _ in range(3):
            draws = torch.rand(16, dtype=torch.float64, generator=generator).tolist()
            tokens = call(draw_tokens, logits, rows, draws)
            assert tokens == call(draw_tokens_reference, logits, rows, draws)
            # A row's token does not depend on the other rows.
            alone = [call(draw_tokens, logits[i : i + 1], rows[i : i + 1], draws[i : i + 1])[0] for i in range(16)]
            assert alone == tokens


def test_random_numbers_may_be_given_by_what_they_are_made_of():
    generator = torch.Generator().manual_seed(2)
    logits, keys = torch.randn(40, 300, generator=generator), torch.randint(-(2**62), 2**62, (3, 40))
    ones, off = torch.ones(40, dtype=torch.float64), torch.zeros(40, dtype=torch.int64)
    numbers, made = philox_uniform(*keys), (keys[0], keys[1], keys[2])
    expected = draw_tokens(logits, ones, off, ones, ones * 0, numbers)
    assert torch.equal(draw_tokens(logits, ones, off, ones, ones * 0, made), expected)
    assert torch.equal(draw_tokens_reference(logits, ones, off, ones, ones * 0, made), expected)
    with pytest.raises(RuntimeError, match="expected one tensor, or seeds, samples and positions, got 2"):
        draw_tokens(logits, ones, off, ones, ones * 0, made[:2])


@FUNCTIONS
def test_rows_that_are_not_finite(function):
    logits = torch.tensor([[1.0, 2.0, 3.0]] * 4)
    for row, value in enumerate([float("nan"), float("inf"), -float("inf")]):
        logits[row, 1] = value
    rows, draws = [OFF, OFF, OFF, OFF], [0.99] * 4
    assert call(function, logits, rows, draws) == [-1, -1, -1, 2]
    assert call(function, logits.double(), rows, draws) == [-1, -1, 2, 2]
    assert call(function, torch.full((1, 40), -torch.inf, dtype=torch.float64), [OFF], [0.5]) == [-1]
    assert call(function, logits[:2], [(0.0, 0, 1.0, 0.0)] * 2, [0.5] * 2) == [-1, -1]
    # Also where the mask does not allow the token.
    only_first = torch.tensor([[True, False, False]] * 4)
    assert call(function, logits, rows, draws, only_first) == [-1, -1, -1, 0]
    assert call(function, logits.double(), rows, draws, only_first) == [-1, -1, 0, 0]
    assert call(function, logits, rows, draws, only_first & False) == [-1, -1, -1, NONE_ALLOWED]
    assert call(function, logits.double(), rows, draws, ~only_first & (logits == -torch.inf)) == [-1, -1, -2, -2]


@FUNCTIONS
def test_banned_tokens_are_never_drawn(function):
    logits = torch.zeros(1, 5, dtype=torch.float64)
    logits[0, [0, 2, 4]] = -torch.inf
    assert {call(function, logits, [OFF], [i / 50])[0] for i in range(50)} == {1, 3}
    assert call(function, logits, [(0.0, 0, 1.0, 0.0)], [0.9]) == [1]


def test_opcheck():
    arguments = [torch.ones(3, dtype=torch.float64) for _ in range(4)]
    arguments.insert(1, torch.zeros(3, dtype=torch.int64))
    draw = torch.ops.rwkv_engine.draw_tokens.default
    torch.library.opcheck(draw, (torch.randn(3, 9), *arguments[:4], [arguments[4] / 2]))
    masks = torch.full((3, 1), 5, dtype=torch.int32)
    torch.library.opcheck(draw, (torch.randn(3, 9), *arguments[:4], [arguments[4] / 2], masks))


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(2, 0), r"logits: expected float32 or float64 of shape \(B, V\), V > 0, got Float"),
        (0, torch.zeros(2, 3, dtype=torch.float16), "logits: expected float32 or float64 .* got Half"),
        (1, torch.zeros(3, dtype=torch.float64), r"temperatures: expected Double of shape \(2,\)"),
        (2, torch.zeros(2), "top_k: expected Long"),
        (3, torch.zeros(2), "top_p: expected Double"),
        (4, torch.zeros(2, 1, dtype=torch.float64), r"min_p: .* got Double of shape \[2, 1\]"),
        (5, torch.zeros(1, dtype=torch.float64), "draws: expected Double"),
        (6, torch.zeros(2, 1, dtype=torch.int64), r"allowed: expected Int of shape \(2, 1\) .* got Long"),
        (
            6,
            torch.zeros(2, 2, dtype=torch.int32),
            r"allowed: expected Int of shape \(2, 1\) .* got Int of shape \[2, 2\]",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(index, value, message):
    arguments = [torch.zeros(2, 3), *(torch.zeros(2, dtype=torch.float64) for _ in range(4))]
    arguments.insert(2, torch.zeros(2, dtype=torch.int64))
    arguments.append(torch.zeros(2, 1, dtype=torch.int32))
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        draw_tokens(*arguments)


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (1, -0.5, "temperatures: expected numbers >= 0, got -0.5"),
        (1, math.nan, "temperatures: expected numbers >= 0, got nan"),
        (3, 0.0, r"top_p: expected numbers in \(0, 1\], got 0"),
        (3, math.nan, r"top_p: expected numbers in \(0, 1\], got nan"),
    ],
)
def test_numbers_without_a_meaning_are_refused(index, wrong, message):
    if not cpu_kernels.status().level:
        pytest.skip("needs compiled kernels")
    arguments = [torch.zeros(2, 3), *(torch.ones(2, dtype=torch.float64) for _ in range(4))]
    arguments.insert(2, torch.zeros(2, dtype=torch.int64))
    arguments[index] = torch.tensor([0.5, wrong], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"{message} in row 1"):
        draw_tokens(*arguments)
