"""The fused halves of a layer against their references, in float64 too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import wraps

import pytest
import torch
from torch import Tensor

from rwkv_engine.ops import ChannelMixing4Step, TimeMixing4Step, channel_mixing4_step, time_mixing4_step
from rwkv_engine.ops.channel_mixing4_step import channel_mixing4_step_reference
from rwkv_engine.ops.tiles import tile_reference, tiled_shape
from rwkv_engine.ops.time_mixing4_step import time_mixing4_step_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(8, 8, 8), (16, 32, 64), (40, 56, 100), (33, 17, 65), (2056, 8, 24), (224, 224, 768)]  # C, A, F


def tiled(weight: Tensor) -> Tensor:
    tiles = torch.empty(tiled_shape(*weight.shape, weight.dtype), dtype=weight.dtype)
    tile_reference(weight, tiles)
    return tiles


@dataclass
class Half:
    """Arguments of a step; matrices in tiles, `state` replaced in place."""

    arguments: list
    state: list[Tensor]

    def run(self, function, slots=None, scales=()):
        """What a function returns, and the state after it."""
        state = [t.clone() for t in self.state]
        return function(*self.arguments, *state, slots, scales), state

    def in_pool(self, size: int, slots: list[int]) -> Half:
        """The same with the state's rows in `slots` of a layer of a pool, noise in all the others."""
        pools = [torch.randn(size, 3, t.shape[1]) for t in self.state]
        for pool, t in zip(pools, self.state, strict=True):
            pool[slots, 1] = t
        return Half(self.arguments, pools)


def numbers(seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=generator) * scale

    return normal


def time_half(size, batch, dtype, seed=0) -> Half:
    c, a, _ = size
    normal = numbers(seed)
    mixes = [torch.rand(c, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    matrices = [tiled(normal(n, k, scale=k**-0.5).to(dtype)) for n, k in [(a, c)] * 3 + [(c, a)]]
    vectors = [normal(batch, c, scale=3), 1 + normal(c, scale=0.1), normal(c, scale=0.1), 1e-5, *mixes]
    recurrence = [-normal(a).exp(), normal(a)]
    state = [normal(batch, c), normal(batch, a), 1 + normal(batch, a).abs(), normal(batch, a)]
    return Half([*vectors, *recurrence, *matrices], state)


def channel_half(size, batch, dtype, seed=0) -> Half:
    c, _, f = size
    normal = numbers(seed)
    mixes = [torch.rand(c, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    matrices = [tiled(normal(n, c, scale=c**-0.5).to(dtype)) for n in (f, c)]
    vectors = [normal(batch, c, scale=3), 1 + normal(c, scale=0.1), normal(c, scale=0.1), 1e-5, *mixes]
    return Half([*vectors, *matrices, normal(f, c, scale=f**-0.5).to(dtype)], [normal(batch, c)])


def positional(function, arguments):
    """A step as the operator itself is called: its arguments one after another."""

    @wraps(function)
    def called(*values):
        return function(arguments(*values))

    return called


time_step = positional(time_mixing4_step, TimeMixing4Step)
time_reference = positional(time_mixing4_step_reference, TimeMixing4Step)
channel_step = positional(channel_mixing4_step, ChannelMixing4Step)
channel_reference = positional(channel_mixing4_step_reference, ChannelMixing4Step)
KINDS = {
    "time": (time_half, time_step, time_reference),
    "channel": (channel_half, channel_step, channel_reference),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 5, 16])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_reference(kind, size, batch, dtype):
    """Weights are the same numbers in both, so both make float32's errors only; the fused one no more than twice."""
    make, step, reference = KINDS[kind]
    half = make(size, batch, dtype)
    exact = half.run(exactly(reference))
    theirs, ours = half.run(reference), half.run(step)

    def errors(result):
        (y, state), (exact_y, exact_state) = result, exact
        pairs = zip([y, *state], [exact_y, *exact_state], strict=True)
        return [((t.double() - e).abs().max() / e.abs().max()).item() for t, e in pairs]

    # Rounding errors of a sum of c terms in four parts, a random walk of c / 4 steps of 2^-24.
    floor = max(2.0**-22, math.sqrt(size[0] / 4) * 2.0**-24)
    for our_error, their_error in zip(errors(ours), errors(theirs), strict=True):
        assert our_error < 2 * max(their_error, floor)


def exactly(reference):
    """The reference in float64. Tiles stay as they are: their layout depends on the size of a number."""

    def run(*all_arguments):
        *arguments, slots, scales = all_arguments

        def widen(t):
            return t.double() if isinstance(t, Tensor) and t.dtype == torch.float32 and t.ndim < 3 else t

        widened = [widen(t) for t in arguments]
        y = reference(*widened, slots, [None if t is None else t.double() for t in scales])
        n = 4 if reference is time_reference else 1
        for old, new in zip(arguments[-n:], widened[-n:], strict=True):
            old.data = new
        return y

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_do_not_depend_on_its_neighbours(kind, dtype):
    make, step, _ = KINDS[kind]
    half = make((40, 56, 100), 16, dtype)
    y, state = half.run(step)
    for i in range(16):
        alone = Half([half.arguments[0][i : i + 1], *half.arguments[1:]], [t[i : i + 1] for t in half.state])
        y_alone, state_alone = alone.run(step)
        assert torch.equal(y_alone[0], y[i])
        for one, all_ in zip(state_alone, state, strict=True):
            assert torch.equal(one[0], all_[i])


def test_states_may_lie_apart():
    """As layers of a pool do."""
    half = time_half((40, 56, 100), 3, torch.float32)
    y, state = half.run(time_step)
    pools = [torch.randn(3, 7, t.shape[1]) for t in half.state]
    for pool, t in zip(pools, half.state, strict=True):
        pool[:, 2] = t
    before = [pool.clone() for pool in pools]
    assert torch.equal(time_step(*half.arguments, *(pool[:, 2] for pool in pools)), y)
    for pool, old, new in zip(pools, before, state, strict=True):
        assert torch.equal(pool[:, 2], new)
        assert torch.equal(pool[:, [0, 1, 3, 4, 5, 6]], old[:, [0, 1, 3, 4, 5, 6]]), "and no other layer is touched"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ["step", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_slots_say_which_rows_of_a_state_are_meant(kind, function, dtype):
    make, *functions = KINDS[kind]
    function = functions[function == "reference"]
    half = make((40, 56, 100), 5, dtype)
    y, state = half.run(function)
    slots = [6, 2, 9, 0, 3]
    pooled = half.in_pool(11, slots)
    pools = [pool.clone() for pool in pooled.state]
    assert torch.equal(function(*half.arguments, *(pool[:, 1] for pool in pools), torch.tensor(slots)), y)
    others = [i for i in range(11) if i not in slots]
    for pool, before, new in zip(pools, pooled.state, state, strict=True):
        assert torch.equal(pool[slots, 1], new)
        assert torch.equal(pool[others], before[others]), "no other slot is touched"
        assert torch.equal(pool[:, [0, 2]], before[:, [0, 2]]), "and no other layer"


@pytest.mark.parametrize("function", ["step", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_fill_up_a_batch_may_share_a_slot(kind, function):
    make, *functions = KINDS[kind]
    function = functions[function == "reference"]
    half = make((40, 56, 100), 8, torch.float32)
    y, state = half.run(function)
    half.state = [torch.cat([t[:5], torch.zeros_like(t[:1])]) for t in half.state]
    padded, pools = half.run(function, torch.tensor([0, 1, 2, 3, 4, 5, 5, 5]))
    assert torch.equal(padded[:5], y[:5])
    for pool, new in zip(pools, state, strict=True):
        assert torch.equal(pool[:5], new[:5])
        assert torch.isfinite(pool[5]).all()


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (torch.tensor([0, 3]), r"slots: row 1 has slot 3, expected one of the 3 rows of the state"),
        (torch.tensor([-1, 0]), r"slots: row 0 has slot -1, expected one of the 3 rows of the state"),
        (torch.tensor([0, 1, 2]), r"slots: expected 2 contiguous int64 on cpu, got Long of shape \[3\]"),
        (torch.tensor([0, 1], dtype=torch.int32), r"slots: expected 2 contiguous int64 on cpu, got Int"),
        (None, r"shift: expected 2 rows without gaps inside them, got shape \[3, 16\]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_slots_that_do_not_fit_are_refused_before_anything_is_written(kind, slots, message):
    make, step, _ = KINDS[kind]
    half = make((16, 32, 64), 3, torch.float32)
    half.arguments[0] = half.arguments[0][:2]
    state = [t.clone() for t in half.state]
    with pytest.raises(RuntimeError, match=message):
        step(*half.arguments, *state, slots)
    assert all(torch.equal(now, before) for now, before in zip(state, half.state, strict=True))


def test_a_square_beyond_float16_is_exact():
    half = channel_half((64, 64, 256), 4, torch.float16)
    half.arguments[1] = half.arguments[1] * 300  # the LayerNorm's weight, so k reaches hundreds, its square 100,000s
    theirs, ours = half.run(channel_reference)[0], half.run(channel_step)[0]
    assert theirs.abs().max() > 65504
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_nan_is_not_hidden_by_the_relu():
    half = channel_half((40, 56, 100), 2, torch.float32)
    half.arguments[0][1, 3] = torch.nan
    y, _ = half.run(channel_step)
    assert torch.isfinite(y[0]).all()
    assert y[1].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    make, step, _ = KINDS[kind]
    half = make((16, 32, 64), 2, torch.bfloat16)
    operator = getattr(torch.ops.rwkv_engine, step.__name__).default
    torch.library.opcheck(operator, (*half.arguments, *half.state, None, []))
    torch.library.opcheck(operator, (*half.arguments, *half.state, torch.tensor([1, 0]), []))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_refused(kind):
    make, step, _ = KINDS[kind]
    half = make((16, 32, 64), 2, torch.float32)
    half.arguments[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match="no gradient; load the model with trainable=True"):
        half.run(step)
    with torch.no_grad():
        half.run(step)


@pytest.mark.parametrize(
    ("kind", "index", "value", "message"),
    [
        ("time", 0, torch.zeros(16), r"x: expected shape \(B, C\)"),
        ("time", 1, torch.zeros(15), r"ln_weight: expected shape \[16\], got \[15\]"),
        ("time", 7, torch.zeros(31), r"first: expected shape \[31\], got \[32\]"),
        ("time", 9, torch.zeros(3, 1, 16, 16, 1), "key: expected 32 x 16 in contiguous tiles"),
        ("channel", 8, torch.zeros(64, 15), "value: expected contiguous"),
        ("channel", 7, tiled(torch.zeros(16, 32)), "receptance: expected 16 x 16"),
    ],
)
def test_arguments_that_do_not_fit_are_named(kind, index, value, message):
    make, step, _ = KINDS[kind]
    half = make((16, 32, 64), 2, torch.float32)
    half.arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        half.run(step)
