"""wkv7_inputs and wkv7_gated: what is around RWKV-7's recurrence, against float64 and the same bits for a token in any
prompt. That they are the functions of the step is tested in tests/models/test_steps_as_it_reads.py."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_engine.core.weight_format import float_format
from rwkv_engine.models.arrange import arrange
from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops import Gates7, wkv7_gated, wkv7_inputs
from rwkv_engine.ops.wkv7_gated import wkv7_gated_reference
from rwkv_engine.ops.wkv7_inputs import Wkv7Inputs, inputs_by, wkv7_inputs_reference

needs_kernels = pytest.mark.skipif(cpu_kernels.status().kind == "reference", reason="needs compiled kernels")


class Sizes(NamedTuple):
    tokens: int
    width: int
    heads: int
    head_size: int
    ranks: tuple[int, int, int, int]  # of w, a, g and v, which is 0 in layer 0


SIZES = [
    Sizes(1, 8, 1, 8, (32, 32, 32, 32)),
    Sizes(17, 40, 2, 20, (32, 64, 32, 0)),
    Sizes(67, 33, 3, 32, (64, 32, 96, 32)),
    Sizes(300, 130, 2, 64, (32, 32, 160, 64)),
]


class Case:
    """Random arguments, and the low-rank factors as they are before they lie in tiles."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=generator) * scale

        m, c, heads, self.head_size, ranks = sizes
        a = heads * self.head_size
        self.mixed, self.k, self.v, self.r = normal(6, m, c), normal(m, a), normal(m, a), normal(m, a)
        self.first = normal(m, a)
        self.y, self.r_k, self.norm = normal(m, a), normal(heads, self.head_size), (normal(a), normal(a))
        self.factors, tiles, none = {}, {}, torch.empty(0)
        for name, rank in zip("wagv", ranks, strict=True):
            for i, (outputs, inputs) in enumerate([(rank, c), (a, rank)], 1):
                weight = normal(outputs, inputs, scale=1.5 / max(1, inputs) ** 0.5).to(dtype)
                self.factors[f"{name}{i}"] = weight
                tiles[f"{name}{i}"] = arrange(weight, "tiles", float_format(dtype))[0] if rank else none
        vectors = {name: normal(a) for name in ("w0", "a0", "k_k", "k_a")}
        self.parameters = Gates7(**vectors, v0=normal(a) if ranks[-1] else none, **tiles)

    def run(self, function, rows: slice = slice(None)) -> Wkv7Inputs:
        return function(
            self.mixed[:, rows], self.k[rows], self.v[rows], self.first[rows], self.head_size, self.parameters
        )

    def exact(self) -> Wkv7Inputs:
        def low_rank(name, x, activation):
            hidden = F.linear(x, self.factors[f"{name}1"].double())
            return F.linear(hidden if activation is None else activation(hidden), self.factors[f"{name}2"].double())

        own = self.parameters
        values = (self.first.double(), own.v0.double()) if own.v0.numel() else None
        vectors = (vector.double() for vector in (own.w0, own.a0, own.k_k, own.k_a))
        inputs = (self.mixed.double(), self.k.double(), self.v.double())
        return inputs_by(low_rank, *inputs, values, self.head_size, *vectors)


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_inputs_against_float64(sizes, dtype):
    """At most twice the error of torch's products in float32, with the same weights."""
    case = Case(sizes, dtype)
    ours, exact = case.run(wkv7_inputs), case.exact()
    in_float32 = case.parameters._replace(
        **{
            name: arrange(weight.float(), "tiles", float_format(torch.float32))[0]
            for name, weight in case.factors.items()
            if weight.numel()
        }
    )
    theirs = Case.run(case, lambda *given: wkv7_inputs_reference(*given[:-1], in_float32))
    for name, got, other, expected in zip(Wkv7Inputs._fields, ours, theirs, exact, strict=True):
        assert got.dtype == torch.float32, name
        assert error(got, expected) <= 2 * error(other, expected) + 2**-26, name
        assert error(got, expected) < 1e-6, name


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gated_against_float64(sizes):
    case = Case(sizes, torch.float32)
    rows = case.y, case.r, case.k, case.v, case.first, case.r_k, *case.norm
    exact = wkv7_gated_reference(*(x.double() for x in rows))
    assert error(wkv7_gated(*rows), exact) <= 2 * error(wkv7_gated_reference(*rows), exact) < 1e-6


@needs_kernels
@pytest.mark.parametrize("sizes", SIZES[1:], ids=str)
def test_the_bits_of_a_token_depend_neither_on_others_nor_on_threads(sizes):
    case = Case(sizes, torch.float32)
    rows = case.y, case.r, case.k, case.v, case.first
    together, gated = case.run(wkv7_inputs), wkv7_gated(*rows, case.r_k, *case.norm)
    threads, n = torch.get_num_threads(), sizes.tokens
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for part in (slice(0, n), slice(0, 1), slice(n - 1, n), slice(3, n // 2 + 3), slice(1, n)):
                alone = case.run(wkv7_inputs, part)
                assert all(torch.equal(a, b[part]) for a, b in zip(alone, together, strict=True))
                assert torch.equal(wkv7_gated(*(x[part] for x in rows), case.r_k, *case.norm), gated[part])
    finally:
        torch.set_num_threads(threads)


def test_gated_has_a_gradient_and_inputs_refuse_one():
    case = Case(SIZES[1], torch.float32)
    case.y.requires_grad_(), case.mixed.requires_grad_()
    wkv7_gated(case.y, case.r, case.k, case.v, case.first, case.r_k, *case.norm).sum().backward()
    assert case.y.grad is not None
    assert float(case.y.grad.abs().max()) > 0
    with pytest.raises(RuntimeError, match="has no gradient"):
        case.run(wkv7_inputs)


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixed": torch.zeros(5, 17, 40)}, r"mixed: expected shape \(6, M, C\), got \[5, 17, 40\]"),
        ({"k": torch.zeros(16, 40)}, r"k: expected shape \[17, 40\], got \[16, 40\]"),
        ({"head_size": 7}, "head_size: expected a divisor of 40, got 7"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    case = Case(SIZES[1], torch.float32)
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(RuntimeError, match=message):
        case.run(wkv7_inputs)


@needs_kernels
def test_a_layer_that_mixes_values_needs_those_of_layer_0():
    case = Case(SIZES[2], torch.float32)
    with pytest.raises(RuntimeError, match="first: a layer that mixes values needs those of layer 0"):
        wkv7_inputs(case.mixed, case.k, case.v, None, case.head_size, case.parameters)
