from __future__ import annotations

import json
import re

import oracle
import pytest
from checkpoint_files import save_pth
from oracle import Shape

from rwkv_engine import RWKV
from rwkv_engine.evaluation import compare, evaluate, text_ids, write

TEXT = "Once upon a time there was a king\r\nwho had a fée for a daughter.\n" * 5


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return str(path)


@pytest.fixture(scope="module")
def coarse():
    return RWKV.from_pretrained("tales", "cpu bf16")


def test_a_text(call, file, tales):
    code, text, errors = call("eval", "--text", file)
    assert (code, errors) == (0, "")
    score = evaluate(tales, TEXT)
    assert re.search(rf"^nats per byte +{score.nats_per_byte:.4g}$", text, re.MULTILINE)
    assert re.search(rf"^perplexity per token +{score.perplexity:.4g}$", text, re.MULTILINE)
    assert re.search(r"^tokens per second +[\d.,]+$", text, re.MULTILINE)
    code, text, _ = call("eval", "--text", file, "--json")
    report = json.loads(text)
    assert report["nats_per_token"] == score.nats_per_token
    assert report["bits_per_byte"] == score.bits_per_byte
    assert (report["tokens"], report["bytes"]) == (score.n_tokens, len(TEXT.encode()))
    assert report["strategy"] == "cpu fp32"


def test_a_strategy_against_another_over_a_file(call, file, tales, coarse):
    code, text, _ = call("eval", "--text", file, "--against", "cpu fp32", "--strategy", "cpu bf16", "--json")
    assert code == 0
    report, found = json.loads(text), compare(tales, coarse, text_ids(tales, TEXT))
    assert (report["strategy"], report["reference"]) == ("cpu bf16", "cpu fp32")
    assert report["mean_kl"] == found.mean > 0
    assert report["kl_99th_percentile"] == found.percentile_99
    assert report["largest_kl"] == found.maximum
    assert report["same_most_likely_token"] == found.agreement
    assert report["nats_per_token"] == found.tested_nats / found.n_tokens
    assert report["reference_nats_per_token"] == found.reference_nats / found.n_tokens


@pytest.mark.slow
def test_a_strategy_against_another_over_what_the_reference_writes(call, tales, coarse):
    arguments = ("eval", "--against", "cpu bf16", "--self", "60", "--seed", "5")
    code, text, _ = call(*arguments, "--json")
    report = json.loads(text)
    assert code == 0
    assert report["mean_kl"] == compare(coarse, tales, write(coarse, 60, seed=5)).mean
    assert report["tokens"] == 60
    code, text, _ = call(*arguments)
    assert re.search(rf"^mean KL +{report['mean_kl']:.4g}$", text, re.MULTILINE)


def test_the_same_strategy_twice_has_no_divergence_and_needs_no_tokenizer(call, tmp_path):
    path = str(save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth"))
    code, text, _ = call("eval", "--model", path, "--against", "cpu fp32", "--self", "300", "--json")
    report = json.loads(text)
    assert (code, report["largest_kl"], report["same_most_likely_token"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"", [], "the text is too short, got 0 characters"),
        (b"caf\xe9", [], "text.txt: expected UTF-8 text"),
        (None, [], "text.txt: cannot be read"),
        (b"x", ["--model", "missing.pth"], "missing.pth: no such file or directory"),
        (b"x", ["--tokenizer", "{folder}/other.json"], "has 300 tokens, the model's vocabulary is 2048"),
        (b"x", ["--against", "cpu fp8"], "strategy: "),
    ],
    ids=lambda value: None,
)
def test_a_users_mistake_is_one_line_and_exit_code_1(content, arguments, message, call, tmp_path):
    vocabulary = {f"Ġ{i}": i for i in range(300)}
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    other = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "decoder": decoder}
    (tmp_path / "other.json").write_text(json.dumps(other))
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    arguments = [part.format(folder=tmp_path) for part in arguments]
    code, text, errors = call("eval", "--text", str(tmp_path / "text.txt"), *arguments)
    assert (code, text) == (1, "")
    assert message in errors.splitlines()[0]
    assert errors.startswith("rwkv-engine: error: ")
    assert "--against" in arguments or len(errors.splitlines()) == 1  # a strategy is shown with a caret below it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --text FILE, or --against"),
        (["--text", "x", "--self", "5", "--against", "cpu fp32"], "not both"),
        (["--self", "5"], "--self needs --against"),
        (["--self", "0", "--against", "cpu fp32"], "--self"),
        (["--against", "cpu fp32"], "give --text FILE"),
    ],
)
def test_wrong_usage_says_what_to_give(arguments, message, call):
    code, text, errors = call("eval", *arguments)
    assert (code, text) == (2, "")
    assert message in errors.splitlines()[-1]
