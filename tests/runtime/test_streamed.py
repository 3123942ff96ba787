"""Models with streamed layers give the bits of the same models without them, on every path."""

from __future__ import annotations

import random

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from oracle import Shape
from queues import Late, play

from rwkv_engine import RWKV, Checkpoint, Strategy
from rwkv_engine.core.strategy_grammar import Segment
from rwkv_engine.runtime import Engine, load_model

SHAPE = Shape(n_layer=5, n_embd=40, n_att=56, n_ffn=72, n_vocab=101)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_pth(oracle.random_weights(SHAPE), tmp_path_factory.mktemp("streamed") / "m.pth")


def strategy(word: str, resident: int) -> Strategy:
    """`cpu WORD *N+`, which the grammar refuses: a CPU in the place of a GPU."""
    return Strategy.of([Segment("cpu", word[:4], word[4:] or "dense", count=resident, streams=True)])


def streamed(path, word: str, resident: int = 1, seed: int = 0) -> tuple[RWKV, Late]:
    late, chosen = Late(seed), strategy(word, resident)
    model = load_model(Checkpoint.open(path), chosen, streams_to=late.device())
    late.watch(model.streaming)
    return RWKV(Engine(model), chosen, RWKV.from_pretrained("tales").tokenizer, path), late


WORDS = ["fp32", "bf16", "fp16", "fp32i8", "bf16i4"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("resident", [0, 2, 4])
def test_logits_have_the_same_bits(word, resident, path):
    plain = RWKV.from_pretrained(path, f"cpu {word}")
    model, late = streamed(path, word, resident)
    tokens = torch.randint(0, SHAPE.n_vocab, (3, 9), generator=torch.Generator().manual_seed(0))
    expected, state = plain.forward(tokens, full_output=True)
    logits, own = model.forward(tokens, full_output=True)
    assert torch.equal(logits, expected)
    for _ in range(3):
        tokens = expected.reshape(3, -1, SHAPE.n_vocab)[:, -1].argmax(-1, keepdim=True)
        expected, state = plain.forward(tokens, state)
        logits, own = model.forward(tokens, own)
        assert torch.equal(logits, expected)
    assert torch.equal(own.wkv_num, state.wkv_num)
    for hurry in (0.0, 0.5, 1.0):
        play(late, random.Random(0), hurry)
