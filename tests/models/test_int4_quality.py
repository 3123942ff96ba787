"""What int4 costs `tales`, and models made from it whose inputs or weights have outliers, in nats per byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models.test_int8_quality import N_DECODED, N_WRITTEN, OTHERS, SAME, Tensors, nats_step_by_step

from rwkv_engine import RWKV, Checkpoint
from rwkv_engine.convert.pack import quantize
from rwkv_engine.evaluation import compare, text_ids, write

pytestmark = pytest.mark.slow  # a text of 4096 tokens is written first

# Shares of nats per byte. Their divergences are what is lost on average in texts that the model itself writes.
ALLOWED, ALLOWED_WITH_OUTLIERS = 0.005, 0.01


def both(change: Callable[[Tensors], None], tales: RWKV, tmp_path) -> tuple[RWKV, RWKV]:
    """A model made from `tales` in float32, and what `quantize` makes of it in int4."""
    checkpoint = Checkpoint.open(tales.source)
    tensors = {name: checkpoint.read(name).float().clone() for name in checkpoint.names}
    change(tensors)
    path, quantised = tmp_path / "m.pth", tmp_path / "q.safetensors"
    torch.save(tensors, path)
    quantize(path, quantised, "i4")
    return RWKV.from_pretrained(path), RWKV.from_pretrained(quantised, "cpu fp32i4")


def check(exact: RWKV, rounded: RWKV, ids: list[int], allowed: float) -> None:
    found = compare(exact, rounded, ids)
    lost = found.tested_nats / found.reference_nats - 1
    divergence = found.mean * found.n_tokens / found.reference_nats
    print(f"lost {100 * lost:.3f} %, divergence {100 * divergence:.3f} %")
    assert abs(lost) < allowed, (lost, divergence)
    assert divergence < allowed, (lost, divergence)


@pytest.mark.parametrize("change", (SAME | OTHERS | {"none": lambda tensors: None}).items(), ids=lambda item: item[0])
def test_texts(change, tales, data, tmp_path):
    name, change = change
    allowed = ALLOWED if name == "none" else ALLOWED_WITH_OUTLIERS
    exact, rounded = both(change, tales, tmp_path)
    ids = write(exact, N_WRITTEN, seed=0)
    check(exact, rounded, ids, allowed)
    lost = nats_step_by_step(rounded, ids[:N_DECODED]) / nats_step_by_step(exact, ids[:N_DECODED]) - 1
    assert abs(lost) < 2 * allowed, lost  # of a quarter of the tokens
    text = (data / "fairy_tales_valid.txt").read_text(encoding="utf-8")
    check(exact, rounded, text_ids(tales, text if name == "none" else text[:30_000]), allowed)


def test_while_loading_matrices_are_chosen_by_their_weights(tales):
    rounded = RWKV.from_pretrained("tales", "cpu fp32i4")
    check(tales, rounded, write(tales, N_WRITTEN, seed=0), ALLOWED)
