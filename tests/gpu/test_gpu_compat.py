"""Programs for the rwkv package on the GPU: states of layers there, draws with torch's generator."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from conftest import require_gpu
from oracle import Shape

from rwkv_engine.compat import PIPELINE, RWKV
from rwkv_engine.core.rwkv4_layouts import from_layout, to_layout

require_gpu()
pytestmark = pytest.mark.gpu
SHAPE = Shape(n_layer=3, n_embd=64, n_att=64, n_ffn=160, n_vocab=120)
TOKENS = np.random.default_rng(1).integers(0, SHAPE.n_vocab, 40).tolist()


@pytest.mark.parametrize("exact", [True, False])
def test_torch_draws(exact, gpu):
    pipeline = PIPELINE.__new__(PIPELINE)
    pipeline.exact = exact
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf, 1.5], device=gpu)
    texts = []
    for _ in range(2):
        torch.manual_seed(4)
        np.random.seed(4)  # which draws where the CPU stands in
        texts.append([pipeline.sample_logits(logits, 2.0, 0.9, 3) for _ in range(60)])
    assert texts[0] == texts[1]
    assert set(texts[0]) == {1, 2, 4}


@pytest.mark.parametrize("strategy", ["{gpu} fp32", "{gpu} fp32 *2 -> cpu fp32", "cpu fp32 *2 -> {gpu} fp32"])
def test_lists_of_states(strategy, gpu, tmp_path):
    """The list is on the head's device; one whose tensors lie anywhere is taken."""
    path = save_pth(oracle.random_weights(SHAPE), tmp_path / "m.pth")
    model = RWKV(path, strategy.format(gpu=gpu), verbose=False)
    expected, _ = RWKV(path, "cpu fp32", verbose=False).forward(TOKENS, None)
    logits, state = model.forward(TOKENS[:20], None)
    assert {t.device for t in state} == {logits.device}
    for tokens in (TOKENS[20:30], *[[token] for token in TOKENS[30:]]):
        state[::2] = [t.cpu() for t in state[::2]]
        logits, _ = model.forward(tokens, state)
    assert (logits.cpu() - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize("layout", ["rwkv", "transformers", "rwkv.cpp"])
def test_layouts_there_and_back(layout, gpu, tmp_path):
    model = RWKV(save_pth(oracle.random_weights(SHAPE), tmp_path / "m.pth"), f"{gpu} fp32", verbose=False)
    _, tensors = model.forward(TOKENS, None)
    state = from_layout(tensors, "rwkv", model._config)
    back = from_layout(to_layout(state, layout), layout, model._config)
    assert torch.equal(back.wkv_num.cpu(), state.wkv_num.cpu())
    assert torch.equal(back.att_shift.cpu(), state.att_shift.cpu())
    assert back.att_shift.device.type == ("cpu" if layout == "rwkv.cpp" else state.att_shift.device.type)
