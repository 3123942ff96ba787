"""A prompt as a GPU reads it with 16-bit weights, on the CPU: what products take is rounded before them."""

from __future__ import annotations

import sys

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_engine import RWKV
from rwkv_engine.models import Model
from rwkv_engine.models.rwkv4_derived import Derived

linear_many = sys.modules["rwkv_engine.ops.linear_many"]  # the module, whose name the package gives to its function
SHAPE = Shape(n_layer=2, n_embd=40, n_att=56, n_ffn=72, n_vocab=101)


class MixedProducts(TorchDispatchMode):
    """Products of 16-bit matrices with float32 results, which torch has on GPUs only; counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.dtype:
            self.n += 1
            return args[0].float() @ args[1].float()
        return func(*args, **(kwargs or {}))


def loaded(tmp_path, dtype: str) -> Model:
    path = save_pth(oracle.random_weights(SHAPE), tmp_path / "m.pth")
    return RWKV.from_pretrained(path, f"cpu {dtype}").engine.model


@pytest.mark.parametrize("lengths", [None, [7, 1, 4]], ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_prompt_is_what_it_is_with_float32_activations(dtype, lengths, tmp_path, monkeypatch):
    model = loaded(tmp_path, dtype)
    n_texts = 1 if lengths is None else 3
    tokens = torch.randint(0, SHAPE.n_vocab, (1, 12), generator=torch.Generator().manual_seed(0))
    _, state = model(torch.zeros(n_texts, 3, dtype=torch.int64), model_state(model, n_texts))
    with torch.no_grad():
        exact, after = model.read(tokens, state, lengths=lengths)
        monkeypatch.setattr(linear_many, "_has_mixed_products", lambda x: True)
        with MixedProducts() as products:
            x, new = model.read(tokens, state, lengths=lengths)
    assert products.n == 7 * SHAPE.n_layer
    unit = 2.0**-8 if dtype == "bf16" else 2.0**-11
    for got, expected in [(x, exact), *((new.fields[name], after.fields[name]) for name in new.fields)]:
        scale = expected[expected > -1e29].abs().max()
        assert (got - expected).abs().max() < 16 * unit * scale
    assert not torch.equal(x, exact), "the activations were rounded"


def model_state(model: Model, batch: int):
    from rwkv_engine.core.state import State

    return State.initial(model.config, batch)


def test_what_float16_cannot_hold_stays_float32(tmp_path, monkeypatch):
    """LayerNorms whose results may exceed 65504; those of the largest finite weights still work."""
    monkeypatch.setattr(linear_many, "_has_mixed_products", lambda x: True)
    x = torch.zeros(1, 2, 40)
    for dtype, expected in [("bf16", torch.bfloat16), ("fp16", None)]:
        block = loaded(tmp_path, dtype).layers[0]
        assert block._derive()[0].rounded_for(x, block.att.key, block.att.value) is not None
        block.ln1.weight.data.fill_(20_000)
        assert block._derive()[0].rounded_for(x, block.att.key, block.att.value) == expected
    assert isinstance(block._derived[0], Derived)
    block.forget()
    assert "_derived" not in block.__dict__
