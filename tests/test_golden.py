"""Files written by release 0.2.0 keep working: states, packed files, converted directories, and their fingerprints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rwkv_engine import RWKV, State

FOLDER = Path(__file__).parent / "golden" / "release_0_2"
CONTENT = json.loads((FOLDER / "expected.json").read_text())
IDS, EXPECTED = CONTENT["ids"], CONTENT["models"]
# Twice the largest difference seen between instruction levels and the torch reference, which rounds the activations of
# a float16 product to float16 and does not round those of an int8 product to integers.
TOLERANCES = {"cpu fp32": 2e-6, "cpu fp16": 2.5e-3, "cpu fp32i8": 2e-4}


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "tales"])
def test_models_of_release_0_2_load_with_their_fingerprints(name):
    expected = EXPECTED[name]
    model = RWKV.from_pretrained(FOLDER / name, expected["strategy"])
    assert model.fingerprint == expected["fingerprint"]
    logits, _ = model.forward(IDS)
    tolerance = TOLERANCES[expected["strategy"]]
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), atol=tolerance, rtol=tolerance)


def test_a_state_of_release_0_2_continues_its_text():
    expected = EXPECTED["tiny.pth"]
    model = RWKV.from_pretrained(FOLDER / "tiny.pth")
    state = State.load(FOLDER / "tiny.state")
    assert state.position.tolist() == [len(IDS)]
    assert State.about(FOLDER / "tiny.state") == {"text": "eight tokens"}
    torch.testing.assert_close(model.forward([5], state)[0], torch.tensor(expected["next"]), atol=2e-6, rtol=2e-6)


def test_a_state_of_release_0_2_saved_again_is_the_same_file_but_for_its_order(tmp_path):
    State.load(FOLDER / "tiny.state").save(tmp_path / "again.state", State.about(FOLDER / "tiny.state"))
    before, after = (path.read_bytes() for path in (FOLDER / "tiny.state", tmp_path / "again.state"))
    assert len(before) == len(after)
    one, two = State.load(FOLDER / "tiny.state"), State.load(tmp_path / "again.state")
    for name in ("att_shift", "ffn_shift", "wkv_num", "wkv_den", "wkv_max", "position"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert one.fingerprint == two.fingerprint


def test_the_embedded_model_keeps_its_fingerprint_and_continues_a_state_of_release_0_2(tales):
    expected = EXPECTED["tales"]
    assert tales.fingerprint == expected["fingerprint"] == "57234c9f8ed1eb5a"
    state = State.load(FOLDER / "tales.state")
    written = tales.generate(" who", state=state, max_new_tokens=12, temperature=0)
    assert written == expected["continuation"]
