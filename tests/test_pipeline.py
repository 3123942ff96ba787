"""What the README shows: the embedded model, text in, text out."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import ROOT

from rwkv_engine import RWKV, CheckpointError, RequestError, StrategyError, TokenizerError

GOLDEN = ROOT / "tests" / "golden" / "tales.txt"
PROMPT = "Once upon a time"


@pytest.mark.slow
def test_golden_greedy_text(tales):
    """Written by this engine; transformers agrees, see below. A change of a single token shows here."""
    text = PROMPT + tales.generate(PROMPT, max_new_tokens=120, temperature=0)
    assert text + "\n" == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.slow
def test_transformers_writes_the_golden_text_too(tales):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.RwkvForCausalLM.from_pretrained(tales.source, dtype=torch.float32).eval()
    tokens, state = torch.tensor([tales.tokenizer.encode(PROMPT)]), None
    written = []
    with torch.no_grad():
        for _ in range(120):
            output = theirs(tokens, state=state, use_cache=True)
            state, tokens = output.state, output.logits[:, -1:].argmax(-1)
            written.append(int(tokens))
    assert PROMPT + tales.tokenizer.decode(written) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_the_embedded_model_fits(tales):
    """What it learned is measured with what int8 costs it, in tests/models/test_int8_quality.py."""
    assert sum(path.stat().st_size for path in tales.source.iterdir()) <= 8_000_000


@pytest.mark.slow
def test_the_readme_calls(tales):
    text = tales.generate(PROMPT, max_new_tokens=120, temperature=0.8, top_p=0.9, seed=1)
    assert len(text) > 100
    assert text == tales.generate(PROMPT, max_new_tokens=120, temperature=0.8, top_p=0.9, seed=1)
    assert "".join(tales.stream("There was a king who", seed=2)) == tales.generate("There was a king who", seed=2)
    ids = tales.tokenizer.encode("The fox")
    logits, _ = tales.forward(ids, None)
    assert logits.shape == (tales.config.n_vocab,)
    assert logits.dtype == torch.float32
    every, _ = tales.forward(ids, None, full_output=True)
    assert every.shape == (len(ids), tales.config.n_vocab)
    assert torch.allclose(every[-1], logits, atol=1e-4)


def test_a_stream_is_read_as_it_is_written(tales):
    stream = tales.stream(PROMPT, max_new_tokens=10, seed=1)
    assert stream.tokens == []
    next(stream)
    assert 0 < len(stream.tokens) < 10


@pytest.mark.slow
def test_the_reference_writes_the_golden_text_too(run_python):
    code = (
        "import sys; from rwkv_engine import RWKV\n"
        "print(sys.argv[1] + RWKV.from_pretrained('tales').generate(sys.argv[1], max_new_tokens=120, temperature=0))"
    )
    result = run_python(code, PROMPT, RWKV_ENGINE_KERNELS="reference")
    assert result.stdout == GOLDEN.read_text(encoding="utf-8"), result.stderr


def test_the_end_of_text_stops_by_default(tales, monkeypatch):
    whole = tales.stream(PROMPT, 20, seed=3)
    list(whole)
    end = whole.tokens[5]
    monkeypatch.setattr(tales.tokenizer, "end_of_text", end)
    stopped = tales.stream(PROMPT, 20, seed=3)
    list(stopped)
    assert stopped.tokens == whole.tokens[: whole.tokens.index(end)]
    assert stopped.finish_reason == "stop"


def test_an_empty_prompt_begins_a_text_of_its_own(tales):
    assert tales.generate("", max_new_tokens=5, seed=1)


def test_a_stop_string_that_is_a_special_token_stops_there(tales):
    """A bias makes the model generate the end-of-text token, id 0, at once."""
    biased = {"logit_bias": {0: 1e6}, "seed": 3}
    for options in ({"stop": ["<|endoftext|>"], "stop_tokens": ()}, {"stop": ["zz", "<|endoftext|>"]}):
        stream = tales.stream(PROMPT, 8, **options, **biased)
        assert (list(stream), stream.finish_reason) == ([], "stop")
    unstopped = tales.stream(PROMPT, 8, stop_tokens=(), **biased)
    assert ("".join(unstopped), unstopped.finish_reason, unstopped.tokens) == ("", "length", [0] * 8)


def test_a_stop_string_that_holds_a_special_token_among_text_is_refused(tales):
    with pytest.raises(RequestError, match=r"'<\|endoftext\|>' is a special token \(id 0\).* use the token alone"):
        tales.stream(PROMPT, stop=["\n<|endoftext|>"])


@pytest.mark.parametrize(
    "tokens", [[], 5, [[]], [0.5], ["a"], torch.zeros(1, 1, 1), [-1], [2048], None, [True]], ids=str
)
def test_tokens_that_make_no_sense_are_refused(tokens, tales):
    with pytest.raises(RequestError, match="token"):
        tales.forward(tokens)


def test_wrong_arguments_are_refused_at_the_call(tales):
    with pytest.raises(RequestError, match="temperature"):
        tales.stream(PROMPT, temperature=-1)
    with pytest.raises(RequestError, match="max_new_tokens"):
        tales.stream(PROMPT, max_new_tokens=-1)
    for options, advice in [
        ({"max_tokens": 3}, "did you mean max_new_tokens?"),
        ({"temprature": 3}, "did you mean temperature?"),
        ({"xyz": 3}, "expected one of prompt, max_new_tokens"),
    ]:
        for call in (tales.generate, tales.stream):
            with pytest.raises(RequestError) as caught:
                call("A", **options)
            assert f"{next(iter(options))}: there is no such argument; {advice}" in str(caught.value)
    with pytest.raises(CheckpointError, match="tales"):
        RWKV.from_pretrained("fables")
    for model in (None, 5, b"tales", ""):
        with pytest.raises(CheckpointError, match="model: got"):
            RWKV.from_pretrained(model)
    with pytest.raises(StrategyError, match="strategy: got None, expected text such as"):
        RWKV.from_pretrained("tales", strategy=None)
    with pytest.raises(TokenizerError, match="tokenizer: got 5, expected the path"):
        RWKV.from_pretrained("tales", tokenizer=5)
    for tokens in (torch.tensor([1j]), torch.tensor([1]).to_sparse(), torch.empty(2, dtype=torch.int64, device="meta")):
        with pytest.raises(RequestError, match="tokens: expected"):
            tales.forward(tokens)
    for state in ([1, 2], "state", {}):
        with pytest.raises(RequestError, match="state: got"):
            tales.forward([1], state)
        with pytest.raises(RequestError, match="state: got"):
            tales.stream(PROMPT, state=state)
    for strategy in ("cuda fp16", "cpu fp32i3", "cpu", "", "cpu fp32 *9", "mps fp16"):
        with pytest.raises(StrategyError, match=r"\^"):
            RWKV.from_pretrained("tales", strategy=strategy)


def test_a_model_is_not_made_of_its_name(tales):
    for arguments, named in ((("tales",), {}), (("tales", "cpu fp32"), {}), ((), {"model": "tales"})):
        with pytest.raises(RequestError, match=r"call RWKV.from_pretrained\('tales'\)"):
            RWKV(*arguments, **named)
    assert copy.copy(tales).generate("A", 2, seed=1) == tales.generate("A", 2, seed=1)
