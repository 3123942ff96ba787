"""Which matrices stay int8 under a strategy with int4."""

from __future__ import annotations

import oracle
import pytest
from checkpoint_files import save_packed, save_pth
from oracle import Shape

from rwkv_engine import Checkpoint, CheckpointError
from rwkv_engine.core import Strategy
from rwkv_engine.core.weight_format import I4, I8
from rwkv_engine.runtime.mixed_formats import mixed
from rwkv_engine.runtime.plan import plan_tensors

SHAPE = Shape(n_layer=2, n_embd=64, n_att=64, n_ffn=128, n_vocab=100)


@pytest.fixture
def weights():
    return oracle.random_weights(SHAPE)


def chosen(path, strategy="cpu fp32i4", **budget):
    """The formats of the matrices under a strategy, and what was chosen."""
    checkpoint = Checkpoint.open(path)
    placements = Strategy.parse(strategy).place(checkpoint.config)
    before = plan_tensors(checkpoint.config, placements)
    plans, mixture = mixed(checkpoint, before, **budget)
    assert list(plans) == list(before)
    changed = [name for name in plans if plans[name] != before[name]]
    assert all((before[name].weights, plans[name].weights) == (I4, I8) for name in changed)
    return {name: plan.weights.name for name, plan in plans.items()}, mixture


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.3, 10.0])
def test_they_keep_to_the_budget(budget, weights, tmp_path):
    path = save_pth(weights, tmp_path / "m.pth")
    formats, mixture = chosen(path, budget=budget)
    kept = {name for name, word in formats.items() if word == "i8"}
    assert kept == set(mixture.kept)
    sizes = {name: tensor.shape for name, tensor in weights.items()}
    added = {name: I8.nbytes(sizes[name]) - I4.nbytes(sizes[name]) for name in sizes if formats[name] in ("i4", "i8")}
    assert mixture.n_matrices == len(added) == 15
    assert mixture.int4_bytes == sum(I4.nbytes(sizes[name]) for name in added)
    assert mixture.added == sum(added[name] for name in kept) <= mixture.budget == int(budget * mixture.int4_bytes)
    room = mixture.budget - mixture.added
    assert all(added[name] > room for name in added.keys() - kept), "nothing else would fit"
    assert (len(kept) == 0) == (budget == 0.0)
    assert (len(kept) == 15) == (budget == 10.0)
    assert f"{len(kept)} of 15 int4 matrices stay int8" in str(mixture)


@pytest.mark.parametrize("name", ["blocks.1.att.value.weight", "blocks.0.att.output.weight"])
def test_a_matrix_that_suffers_is_the_first_to_stay(name, weights, tmp_path):
    """One weight of each group, not always in the same column, is 30 times as large as the others."""
    for n, row in enumerate(weights[name]):
        row[7 * n % 64] *= 30
    size = I8.nbytes(weights[name].shape) - I4.nbytes(weights[name].shape)
    path = save_pth(weights, tmp_path / "m.pth")
    all_int4 = chosen(path, budget=0.0)[1].int4_bytes
    assert chosen(path, budget=(size + 1) / all_int4)[1].kept == (name,)


def test_other_strategies_choose_nothing(weights, tmp_path):
    path = save_pth(weights, tmp_path / "m.pth")
    for strategy in ("cpu fp32", "cpu fp32i8"):
        _, mixture = chosen(path, strategy)
        assert mixture is None


def test_only_the_layers_of_int4_count(weights, tmp_path):
    formats, mixture = chosen(save_pth(weights, tmp_path / "m.pth"), "cpu fp32i4 *1 -> cpu fp32i8 *1 -> cpu bf16")
    assert mixture.n_matrices == 7
    assert all(name.startswith("blocks.0.") for name in mixture.kept)
    assert formats["head.weight"] == "bf16"
    assert formats["blocks.1.att.key.weight"] == "i8"


def test_a_file_with_int4_has_chosen_already(weights, tmp_path):
    path = save_packed(weights, tmp_path / "p.safetensors", "cpu fp32i4")
    formats, mixture = chosen(path)
    assert mixture is None
    stored = {name: matrix.dtype for name, matrix in Checkpoint.open(path).packing.matrices.items()}
    assert {name: formats[name] for name in stored} == stored
    assert {"i4", "i8"} < set(stored.values())


def test_a_damaged_matrix_is_refused(weights, tmp_path):
    weights["blocks.0.ffn.value.weight"][3, 4] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.value\.weight: 1 of 8192 numbers are NaN"):
        chosen(save_pth(weights, tmp_path / "m.pth"))
