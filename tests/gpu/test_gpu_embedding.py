"""Vectors of texts on the GPU: against the oracle, and each text as if alone."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from conftest import require_gpu
from models.test_precision import error
from test_embedding import SHAPE, expected_of

from rwkv_engine import RWKV, Checkpoint, Strategy
from rwkv_engine.embedding import POOLINGS, embed
from rwkv_engine.runtime import Engine, load_model

pytestmark = pytest.mark.gpu
require_gpu()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "strategy", ["gpu fp32", "gpu bf16", "gpu fp16", "gpu fp32 *1 -> cpu fp32", "cpu fp32 *1 -> gpu fp32"]
)
def test_vectors_are_the_oracles(strategy, pooling, gpu, tmp_path):
    path = save_pth(oracle.random_weights(SHAPE), tmp_path / "m.pth")
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(SHAPE.n_vocab, (n,), generator=generator) for n in (3, 1, 70, 3, 600, 257)]
    expected = np.array([expected_of(text.tolist(), pooling) for text in ids])
    precision = next(name for name in ("bf16", "fp16", "fp32") if name in strategy)
    plain = load_model(Checkpoint.open(path), Strategy.parse(f"cpu {precision}"), trainable=True)
    allowed = 2 * error(embed(Engine(plain), ids, pooling), expected)
    engine = RWKV.from_pretrained(path, strategy.replace("gpu", gpu)).engine
    together = embed(engine, ids, pooling)
    alone = torch.cat([embed(engine, [text], pooling) for text in ids])
    assert together.device.type == "cpu"
    assert error(together, expected) < allowed
    assert error(alone, expected) < allowed
