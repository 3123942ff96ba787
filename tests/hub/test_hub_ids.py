"""What is a hub id, and what is a path."""

from __future__ import annotations

import oracle
import pytest
from checkpoint_files import save_hugging_face
from oracle import Shape

from rwkv_engine import RWKV, CheckpointError
from rwkv_engine.hub import download as hub
from rwkv_engine.hub.download import parse_id


@pytest.mark.parametrize(
    ("model", "parsed"),
    [
        ("RWKV/rwkv-4-169m-pile", ("RWKV/rwkv-4-169m-pile", None)),
        ("BlinkDL/rwkv-4-raven/RWKV-4-Raven-1B5.pth", ("BlinkDL/rwkv-4-raven", "RWKV-4-Raven-1B5.pth")),
        *[
            (path, None)
            for path in (
                "tales",
                "model.pth",
                "models/rwkv.pth",
                "./models/rwkv",
                "../models/rwkv",
                "/models/rwkv",
                "~/models/rwkv",
                "models/rwkv/",
                "models//rwkv",
                "a/b/c",
                "a/b/c/d",
                "a/b.pth/c.pth",
                "two words/rwkv",
                "a--b/rwkv",
                "",
            )
        ],
    ],
)
def test_hub_ids_are_recognised(model, parsed):
    assert parse_id(model) == parsed


def test_an_existing_path_is_not_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "HfApi", None)
    save_hugging_face(oracle.random_weights(Shape()), Shape(), tmp_path / "someone" / "single")
    assert RWKV.from_pretrained("someone/single").source.samefile("someone/single")
    with pytest.raises(CheckpointError, match="revision='v1' can only be given with a hub id"):
        RWKV.from_pretrained("someone/single", revision="v1")
    with pytest.raises(CheckpointError, match=r"missing/rwkv\.pth: no such file or directory"):
        RWKV.from_pretrained("missing/rwkv.pth")
