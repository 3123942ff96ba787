"""States of one RWKV version are refused by the other, in whichever way they come."""

from __future__ import annotations

import oracle
import oracle7
import pytest
import torch
from checkpoint_files import save_pth

from rwkv_engine import RWKV, RequestError, State
from rwkv_engine.auto import AutoModelForCausalLM
from rwkv_engine.core import Snapshot

# Of the same widths, so that nothing but the fields tells them apart.
SHAPES = {4: oracle.Shape(2, 32, 32, 100, 50), 7: oracle7.Shape(2, 2, 16, 100, 50)}
WEIGHTS = {4: oracle.random_weights(SHAPES[4]), 7: oracle7.random_weights(SHAPES[7])}
OTHER = {4: 7, 7: 4}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    return {version: save_pth(WEIGHTS[version], folder / f"rwkv{version}.pth") for version in SHAPES}


@pytest.fixture(scope="module")
def models(paths):
    return {version: RWKV.from_pretrained(path) for version, path in paths.items()}


@pytest.fixture(params=SHAPES, ids=lambda version: f"rwkv{version}")
def version(request):
    return request.param


@pytest.fixture
def foreign(version, models) -> State:
    """A state of the other version, without the mark of its model."""
    state = models[OTHER[version]].forward([1, 2, 3])[1]
    return State(state.fields, state.position)


def test_a_file(version, models, foreign, tmp_path):
    foreign.save(tmp_path / "s.state")
    models[OTHER[version]].forward([1], State.load(tmp_path / "s.state"))
    with pytest.raises(RequestError, match=r"another RWKV version: got the fields att_shift, .*, expected att_shift"):
        models[version].forward([1], State.load(tmp_path / "s.state"))


@pytest.mark.parametrize("n", [1, 5])
def test_the_engine_and_requests(version, models, foreign, n):
    with pytest.raises(RequestError, match="another RWKV version"):
        models[version].engine.forward(torch.ones(1, n, dtype=torch.int64), foreign)
    marked = models[OTHER[version]].forward([1, 2, 3])[1]
    with pytest.raises(RequestError, match="another model"):
        models[version].engine.forward(torch.ones(1, n, dtype=torch.int64), marked)


def test_auto_models(version, paths, foreign):
    model = AutoModelForCausalLM.from_pretrained(paths[version])
    with pytest.raises(RequestError, match="another RWKV version"):
        model(torch.tensor([[1, 2]]), state=foreign)


def test_a_program_of_the_rwkv_package(version, paths):
    """Its states are lists: of five tensors a layer, and of three."""
    from rwkv_engine.compat.model import RWKV as Compat

    own, other = (Compat(str(paths[v]), "cpu fp32", verbose=False) for v in (version, OTHER[version]))
    _, state = other.forward([1, 2], None)
    with pytest.raises(RequestError, match="tensors, expected"):
        own.forward([1], state)


def test_a_sealed_state_and_a_session(version, models, foreign, tmp_path):
    pytest.importorskip("zstandard", reason="the extra portable is not installed")
    pytest.importorskip("cryptography", reason="the extra portable is not installed")
    from rwkv_engine.portable import Sealer, SealingKeys, Sessions, StateRefused
    from rwkv_engine.text.tokenizer import ByteTokenizer

    def sealer(v):
        model = models[v]
        return Sealer(SealingKeys([b"k" * 32]), model.config, model.fingerprint, ByteTokenizer())

    own, other = sealer(version), sealer(OTHER[version])
    state = models[OTHER[version]].forward([1, 2, 3])[1]
    with pytest.raises(StateRefused) as refused:
        own.open(other.seal(Snapshot(state), "a"), "a")
    assert refused.value.code == "state_of_another_model"
    with pytest.raises(RequestError, match="another RWKV version"):
        own.seal(Snapshot(foreign), "a")

    sessions = Sessions(tmp_path / "sessions", other, seconds=60.0)
    with sessions.use("s", "a") as session:
        session.save(Snapshot(state))
    sessions.close()
    sessions = Sessions(tmp_path / "sessions", own, seconds=60.0)
    with pytest.raises(StateRefused) as refused, sessions.use("s", "a"):
        pass
    assert refused.value.code == "state_of_another_model"
    sessions.close()
