"""What int8 costs `tales`, and models made from it whose inputs or weights have outliers, in nats per byte."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rwkv_engine import RWKV, Checkpoint
from rwkv_engine.evaluation import Divergence, compare, text_ids, write

pytestmark = pytest.mark.slow  # a text of 4096 tokens is written first

Tensors = dict[str, Tensor]
N_WRITTEN, N_DECODED = 4096, 1024
# Shares of nats per byte, which for one text are those of its nats.
ALLOWED, ALLOWED_WITH_OUTLIERS = 0.001, 0.002


def with_outliers(factor: float) -> Callable[[Tensors], None]:
    """8 input channels of every matrix times `factor`, and their inputs over it: the same model, bit by bit.

    An input is made smaller where it comes from. Key, value and receptance read the same one, a LayerNorm's; the
    output matrix reads what is linear in the value, and channel mixing's value the square of its key.
    """

    def change(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(0)

        def scale(name: str, inputs: list[str], readers: list[str], of_inputs: float = 1 / factor) -> None:
            channels = torch.randperm(tensors[f"{name}{inputs[0]}"].shape[0], generator=generator)[:8]
            for each in inputs:
                tensors[f"{name}{each}"][channels] *= of_inputs
            for each in readers:
                tensors[f"{name}{each}.weight"][:, channels] *= factor

        for i in range(1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))):
            block = f"blocks.{i}."
            scale(block, ["ln1.weight", "ln1.bias"], ["att.key", "att.value", "att.receptance"])
            scale(block, ["att.value.weight"], ["att.output"])
            scale(block, ["ln2.weight", "ln2.bias"], ["ffn.key", "ffn.receptance"])
            scale(block, ["ffn.key.weight"], ["ffn.value"], factor**-0.5)
        scale("", ["ln_out.weight", "ln_out.bias"], ["head"])

    return change


def with_rare_large_embeddings(tensors: Tensors) -> None:
    """Four numbers of every eighth token."""
    generator = torch.Generator().manual_seed(1)
    for row in tensors["emb.weight"][::8]:
        row[torch.randperm(len(row), generator=generator)[:4]] *= 50


def with_large_channels(tensors: Tensors) -> None:
    """One of what a layer's time mixing reads, and one of what another's channel mixing does, in every token.

    One in every LayerNorm, value and key matrix of all layers makes another model, which int8 costs 2 %.
    """
    tensors["blocks.1.ln1.weight"][100] *= 50
    tensors["blocks.3.ln2.weight"][100] *= 50


SAME = {"x 64": with_outliers(64.0), "/ 64": with_outliers(1 / 64.0)}
OTHERS = {"embeddings x 50": with_rare_large_embeddings, "channels x 50": with_large_channels}


def changed(tales: RWKV, change: Callable[[Tensors], None], tmp_path) -> tuple[RWKV, RWKV]:
    """In float32 and in int8, a model made from `tales`."""
    checkpoint = Checkpoint.open(tales.source)
    tensors = {name: checkpoint.read(name).float().clone() for name in checkpoint.names}
    change(tensors)
    path = tmp_path / "m.pth"
    torch.save(tensors, path)
    return RWKV.from_pretrained(path), RWKV.from_pretrained(path, "cpu fp32i8")


@pytest.fixture(scope="module")
def written(tales) -> list[int]:
    return write(tales, N_WRITTEN, seed=0)


@pytest.fixture(scope="module")
def rounded() -> RWKV:
    return RWKV.from_pretrained("tales", "cpu fp32i8")


def nats_step_by_step(model: RWKV, ids: list[int]) -> float:
    """As `Score.nats`; decoding goes through other kernels than chunks do."""
    nats, state = 0.0, None
    for token, following in pairwise(ids):
        logits, state = model.forward([token], state)
        nats -= torch.log_softmax(logits.double(), -1)[following].item()
    return nats


def check(found: Divergence, allowed: float) -> None:
    lost = found.tested_nats / found.reference_nats - 1
    divergence = found.mean * found.n_tokens / found.reference_nats
    assert abs(lost) < allowed, (lost, divergence)
    # Gains and losses cancel out in a text, but not here: what is lost on average in a text that the reference writes.
    assert divergence < allowed, (lost, divergence)


def test_text_of_its_own(tales, rounded, written):
    check(compare(tales, rounded, written), ALLOWED)


def test_text_of_its_own_step_by_step(tales, rounded, written):
    ids = written[:N_DECODED]
    lost = nats_step_by_step(rounded, ids) / nats_step_by_step(tales, ids) - 1
    assert abs(lost) < ALLOWED, lost


def test_the_validation_text(tales, rounded, data):
    text = (data / "fairy_tales_valid.txt").read_text(encoding="utf-8")
    found = compare(tales, rounded, text_ids(tales, text))
    check(found, ALLOWED)
    loss = found.reference_nats / len(text.encode())
    print(f"{loss:.4f} nats per byte")
    assert loss <= 1.00, "the embedded model has learned its corpus"


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_outliers_that_cancel_out(change, tales, written, tmp_path):
    exact, rounded = changed(tales, change, tmp_path)
    assert torch.equal(exact.forward(written[:50])[0], tales.forward(written[:50])[0])
    check(compare(exact, rounded, written), ALLOWED_WITH_OUTLIERS)
    ids = written[:N_DECODED]
    lost = nats_step_by_step(rounded, ids) / nats_step_by_step(tales, ids) - 1
    assert abs(lost) < ALLOWED_WITH_OUTLIERS, lost


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_outliers_that_stay(change, tales, tmp_path):
    exact, rounded = changed(tales, change, tmp_path)
    ids = write(exact, N_WRITTEN, seed=0)
    assert not torch.equal(exact.forward(ids[:50])[0], tales.forward(ids[:50])[0])
    check(compare(exact, rounded, ids), ALLOWED_WITH_OUTLIERS)
    lost = nats_step_by_step(rounded, ids[:N_DECODED]) / nats_step_by_step(exact, ids[:N_DECODED]) - 1
    assert abs(lost) < ALLOWED_WITH_OUTLIERS, lost


@pytest.mark.parametrize("change", (SAME | OTHERS).values(), ids=SAME | OTHERS)
def test_outliers_in_the_validation_text(change, tales, data, tmp_path):
    ids = text_ids(tales, (data / "fairy_tales_valid.txt").read_text(encoding="utf-8"))[:10_000]
    check(compare(*changed(tales, change, tmp_path), ids), ALLOWED_WITH_OUTLIERS)
