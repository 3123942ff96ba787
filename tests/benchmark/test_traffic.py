"""Bytes a token reads, counted by hand for a model small enough to do that."""

from __future__ import annotations

import pytest

from rwkv_engine import Rwkv4Config
from rwkv_engine.benchmark.lineup import bytes_per_token
from rwkv_engine.benchmark.models import SHAPES, parse_shape
from rwkv_engine.core import Strategy
from rwkv_engine.errors import RequestError
from rwkv_engine.runtime.plan import plan_tensors

SMALL = Rwkv4Config(n_layer=2, n_embd=10, n_att=6, n_ffn=30, n_vocab=100)
# Of one layer: two LayerNorms, decay and first, three and two mixes.
VECTORS = 4 * 10 + 2 * 6 + 5 * 10
LAYER = 3 * 6 * 10 + 10 * 6 + 30 * 10 + 10 * 10  # matrices but for the value matrix of channel mixing
VALUE = 10 * 30
HEAD = 100 * 10
LN0_AND_OUT = 4 * 10
STATE = 2 * 2 * (10 + 3 * 6 + 10)  # read and written in two layers


def counted(strategy, zeros=(0.0, 0.0)):
    return bytes_per_token(SMALL, plan_tensors(SMALL, Strategy.parse(strategy).place(SMALL)), zeros)


def test_float_matrices_vectors_and_one_row_of_the_embedding():
    rest = 4 * (2 * VECTORS + LN0_AND_OUT + STATE)
    assert counted("cpu fp32") == 4 * (2 * (LAYER + VALUE) + HEAD + 10) + rest
    assert counted("cpu bf16") == 2 * (2 * (LAYER + VALUE) + HEAD + 10) + rest
    # The embedding belongs to the first layer, the head has its own placement.
    assert counted("cpu fp32 *1 -> cpu fp16") == 4 * (LAYER + VALUE + 10) + 2 * (LAYER + VALUE + HEAD) + rest


def test_the_matrices_in_the_state_of_an_rwkv7_are_counted():
    """Its state without them would be 2 x 2 vectors of each layer."""
    config = SHAPES["rwkv7-0.4b"]
    plans = plan_tensors(config, Strategy.parse("cpu fp32i8").place(config))
    weights = sum(plan.nbytes for name, plan in plans.items() if name != "emb.weight") + 4 * 1024
    state = 2 * 4 * 24 * (16 * 64 * 64 + 2 * 1024)
    assert bytes_per_token(config, plans, [0.0] * 24) == weights + state


def test_zeros_are_not_read_in_their_layer():
    dense = counted("cpu fp32")
    assert counted("cpu fp32", (0.5, 0.0)) == dense - 4 * VALUE * 0.5
    assert counted("cpu fp16 *1 -> cpu fp32", (0.0, 0.9)) == pytest.approx(
        counted("cpu fp16 *1 -> cpu fp32") - 4 * VALUE * 0.9
    )


def test_int8_weights_are_one_byte_and_their_scales_are_always_read():
    rest = 4 * (2 * VECTORS + LN0_AND_OUT + STATE) + 4 * 10
    shapes = [s for name, s in SMALL.tensor_shapes().items() if len(s) == 2 and name != "emb.weight"]
    scales = 4 * sum(n + k for n, k in shapes)
    assert counted("cpu fp32i8") == 2 * (LAYER + VALUE) + HEAD + scales + rest
    assert counted("cpu fp32i8", (1.0, 1.0)) == 2 * LAYER + HEAD + scales + rest


def test_named_shapes_have_the_parameters_of_the_models_of_that_name():
    parameters = {name: config.n_params / 1e6 for name, config in SHAPES.items()}
    expected = {"169m": 169.3, "430m": 430.4, "1b5": 1515.1, "3b": 2984.6, "tales": 3.9}
    expected |= {"rwkv7-0.1b": 191.0, "rwkv7-0.4b": 450.8, "rwkv7-1.5b": 1527.4, "rwkv7-2.9b": 2947.7}
    assert parameters == pytest.approx(expected, abs=0.06)
    config = SHAPES["169m"]
    assert bytes_per_token(
        config, plan_tensors(config, Strategy.parse("cpu fp32").place(config)), [0.0] * 12
    ) == pytest.approx(523e6, rel=1e-3)


def test_a_shape_is_a_name_or_three_numbers():
    assert parse_shape("2,16,100") == Rwkv4Config(2, 16, 16, 64, 100)
    for wrong in ("7b", "2,16", "2,16,100,4", "2,0,100", "2,16,x", ""):
        with pytest.raises(RequestError, match=f"shape: got '{wrong}', expected one of 169m, .*L,C,V"):
            parse_shape(wrong)
