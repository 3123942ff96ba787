"""The classes of `auto` run an RWKV-7 as they run an RWKV-4."""

from __future__ import annotations

import json

import oracle7
import pytest
import torch
from checkpoint_files import save_pth

from rwkv_engine import RWKV, Checkpoint
from rwkv_engine.auto import AutoModelForCausalLM

SHAPE = oracle7.Shape(n_layer=2, n_head=2, head_size=64, n_ffn=100, n_vocab=60)
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def path(tmp_path):
    return save_pth(oracle7.random_weights(SHAPE), tmp_path / "goose.pth")


@torch.no_grad()
def test_it_generates_in_padded_batches(path):
    model = AutoModelForCausalLM.from_pretrained(path)
    own = RWKV.from_pretrained(path)
    logits, state = own.forward(PROMPT)
    expected = []
    for _ in range(8):
        expected.append(int(logits.argmax()))
        logits, state = own.forward([expected[-1]], state)
    alone = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert alone[0].tolist() == PROMPT + expected
    ids, mask = torch.tensor([[0, 0, *PROMPT], [7, 8, *PROMPT]]), torch.tensor([[0, 0] + [1] * 5, [1] * 7])
    both = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert both[0, 2:].tolist() == PROMPT + expected


def test_it_trains_and_saves_a_directory(path, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(path)
    loss = model(torch.tensor([PROMPT]), labels=torch.tensor([PROMPT])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path / "saved")
    assert Checkpoint.open(tmp_path / "saved").fingerprint() == Checkpoint.open(path).fingerprint()
    settings = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (settings["model_type"], settings["architectures"]) == ("rwkv7", ["RWKV7ForCausalLM"])
