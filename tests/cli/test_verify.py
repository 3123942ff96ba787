from __future__ import annotations

import json
import re

import numpy as np
import oracle
import pytest
from checkpoint_files import save_pth
from oracle import Shape

from rwkv_engine.verification import run


@pytest.mark.slow
def test_tales_is_sound_and_other_programs_agree(call):
    for name in ("transformers", "rwkv"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    code, text, _ = call("verify", "tales")
    assert code == 0
    for row in (
        r"file +ok +.*tales, Hugging Face directory",
        r"model +ok +RWKV-4, 5 layers, width 224 .* 3,905,440 parameters",
        r"tokenizer +ok +.*tokenizer.json, 2048 tokens",
        r"loading +ok +96 tensors, all finite",
        r"sample +info +.*spoke perfect Chinese\.",
        r"decode = prefill +ok +logits differ by \S+ of the largest",
        r"state file +ok",
        r"squared relu +info +\d\d\.\d% exact zeros",
        r"speed +info +prefill of 256 tokens \S+ tok/s, decode",
        r"transformers +ok +transformers \S+: logits differ by \S+e-0[67] .*; 41 of 41 greedy tokens the same",
        r"rwkv +ok +rwkv \S+: logits differ by \S+e-0[67] .*; 41 of 41 greedy tokens the same",
    ):
        assert re.search(f"^{row}", text, re.MULTILINE), row
    assert "FAILED" not in text


def test_json_and_exit_codes(call, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RUNNERS", {})
    weights = oracle.random_weights(Shape())
    sound = str(save_pth(weights, tmp_path / "sound.pth"))
    weights["head.weight"][0, 0] = np.nan
    damaged = str(save_pth(weights, tmp_path / "damaged.pth"))

    code, text, errors = call("verify", sound, "--json", "--strategy", "cpu fp16")
    report = json.loads(text)
    assert (code, report["sound"], errors) == (0, True, "")
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["loading"]["numbers"] == {"tensors": 42, "strategy": "cpu fp16"}
    assert len(checks["squared relu"]["numbers"]["layers"]) == 2

    code, text, _ = call("verify", damaged, "--json")
    report = json.loads(text)
    assert (code, report["sound"]) == (1, False)
    assert report["checks"][-1]["verdict"] == "FAILED"
    code, text, errors = call("verify", damaged)
    assert (code, errors) == (1, "")
    assert re.search(r"^loading +FAILED .*head\.weight: 1 of 528 numbers", text.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["missing.pth"], "missing.pth: no such file"), (["tales", "--strategy", "cuda fp16"], "strategy: ")],
)
def test_a_users_mistake_is_an_error_not_a_check(arguments, message, call):
    code, text, errors = call("verify", *arguments)
    assert (code, text) == (1, "")
    assert errors.startswith(f"rwkv-engine: error: {message}")
