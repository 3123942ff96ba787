"""`/v1/completions`: the texts that `generate` writes, for every parameter, whole and in pieces."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from served import begun

from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.generation.params import SamplingOptions
from rwkv_engine.server.logprobs import Offsets, of_completion

PATH = "/v1/completions"
PROMPT = "The king"
BIAS = {"32": -5.0, "535": 3}
OPTIONS = [
    {},
    {"temperature": 0},
    {"temperature": 1.7, "top_k": 5},
    {"top_p": 0.5},
    {"min_p": 0.2},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"frequency_penalty": 1.0, "penalty_decay": 0.9},
    {"logit_bias": BIAS},
    {"stop": "the"},
    {"stop": ["e ", "zzz"]},
    {"seed": 7},
    {"stop": [], "logit_bias": {}, "top_p": None, "stream": False, "user": "me"},
]


@pytest.fixture(scope="module")
def service(talker):
    """A server of each RWKV version."""
    return begun(talker)


def expected(talker, n_tokens=20, **options):
    """The stream of `generate` with the options of a body."""
    options = {name: value for name, value in options.items() if value is not None and name not in ("stream", "user")}
    options["logit_bias"] = {int(token): bias for token, bias in options.get("logit_bias", {}).items()}
    options["stop"] = [options["stop"]] if isinstance(options.get("stop"), str) else options.get("stop", [])
    stream = talker.stream(options.pop("prompt", PROMPT), n_tokens, **options)
    for _ in stream:
        pass
    return stream


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_texts_are_those_of_generate(client, talker, options):
    body = {"prompt": PROMPT, "seed": 3, "max_tokens": 20} | options
    alone = expected(talker, **({"seed": 3} | options))
    result = client.result(PATH, **body)
    [choice] = result["choices"]
    assert choice == {"index": 0, "text": alone.text, "finish_reason": alone.finish_reason, "logprobs": None}
    assert result["object"] == "text_completion"
    assert result["usage"]["prompt_tokens"] == 2
    assert len(alone.tokens) <= result["usage"]["completion_tokens"] <= 20

    chunks = client.events(PATH, **body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == alone.text
    assert [c["choices"][0]["finish_reason"] for c in chunks[-2:]] == [None, alone.finish_reason]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


def test_samples_and_prompts(client, talker):
    prompts = ["The king", "A fox", ""]
    body = {"n": 3, "seed": 5, "max_tokens": 8, "no_cache": True}
    many = talker.generate([{"prompt": p, "sample": i} for p in prompts for i in range(3)], 8, seed=5)
    result = client.result(PATH, prompt=prompts, **body)
    assert [choice["text"] for choice in result["choices"]] == many
    assert [choice["index"] for choice in result["choices"]] == list(range(9))
    counts = {"prompt_tokens": 5, "completion_tokens": 72, "total_tokens": 77}
    assert result["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
    ids = [talker.encode_prompt(prompt) for prompt in prompts]
    assert [c["text"] for c in client.result(PATH, prompt=ids, **body)["choices"]] == many
    assert client.result(PATH, prompt=ids[0], seed=5, max_tokens=8)["choices"][0]["text"] == many[0]

    chunks = client.events(PATH, prompt=prompts, stream_options={"include_usage": True}, **body)
    texts = [""] * 9
    for chunk in chunks[:-1]:
        assert chunk["usage"] is None
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == many
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == result["usage"]


def test_defaults_are_those_of_openai(client):
    body = client.result(PATH, prompt="The")
    assert body["usage"]["completion_tokens"] == 16
    assert client.result(PATH, prompt="The", max_tokens=0)["choices"][0]["text"] == ""
    both = client.result(PATH, prompt="The", max_completion_tokens=3)
    assert both["usage"]["completion_tokens"] == 3
    different = {client.result(PATH, prompt="The", temperature=3.0)["choices"][0]["text"] for _ in range(3)}
    assert len(different) > 1


def test_echo(client, talker):
    text = talker.generate(PROMPT, 5, seed=1)
    body = {"echo": True, "seed": 1, "max_tokens": 5}
    for prompt in (PROMPT, talker.encode_prompt(PROMPT)):
        assert client.result(PATH, prompt=prompt, **body)["choices"][0]["text"] == PROMPT + text
        chunks = client.events(PATH, prompt=prompt, **body)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == PROMPT + text
        assert chunks[0]["choices"][0]["text"] == PROMPT


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [0, 7])
def test_echo_with_logprobs(client, talker, max_tokens):
    """As evaluation harnesses ask for the log-probabilities of given texts."""
    prompts = ["The king said to the fox that he must go. " * 20, "Köln", "A"]
    ids = [talker.encode_prompt(prompt) for prompt in prompts]
    body = {"echo": True, "logprobs": 3, "max_tokens": max_tokens, "seed": 1, "logit_bias": {"0": -100}}
    result = client.result(PATH, prompt=prompts, n=2, **body)
    assert client.result(PATH, prompt=ids, n=2, **body)["choices"] == result["choices"]
    streamed = [
        {"text": "", "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []} for _ in range(6)
    ]
    for chunk in client.events(PATH, prompt=prompts, n=2, **body):
        [choice] = chunk["choices"]
        streamed[choice["index"]]["text"] += choice["text"]
        for name, values in choice["logprobs"].items():
            streamed[choice["index"]][name] += values
    for i, choice in enumerate(result["choices"]):
        prompt, given = prompts[i // 2], ids[i // 2]
        made = talker.generate(prompt, max_tokens, seed=1, sample=i % 2, logit_bias={0: -100.0})
        assert choice["text"] == prompt + made
        shown = choice["logprobs"]
        assert shown["token_logprobs"][0] is None
        assert shown["top_logprobs"][0] is None
        logits, _ = talker.forward(given, full_output=True)
        logp = torch.log_softmax(logits.double(), dim=-1)
        expected = [logp[at, token].item() for at, token in enumerate(given[1:])]
        assert shown["token_logprobs"][1 : len(given)] == pytest.approx(expected, abs=1e-6)
        best = [logp[at].max().item() for at in range(len(given) - 1)]
        assert [max(top.values()) for top in shown["top_logprobs"][1 : len(given)]] == pytest.approx(best, abs=1e-6)
        assert len(shown["tokens"]) == len(given) + max_tokens
        for name, at in zip(shown["tokens"], shown["text_offset"], strict=True):
            assert name.startswith("bytes:") or choice["text"][at:].startswith(name)
        assert streamed[i] == {"text": choice["text"], **shown}
    assert result["usage"]["prompt_tokens"] == sum(map(len, ids))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_logprobs(client, talker, seed):
    options = {"temperature": 4.0, "seed": seed, "stop": ["e"]}  # hot, so that tokens end inside characters
    alone = expected(talker, 60, logprobs=2, **options)
    body = {"prompt": PROMPT, "max_tokens": 60, "logprobs": 2, **options}
    [choice] = client.result(PATH, **body)["choices"]
    shown = choice["logprobs"]
    tokenizer = talker.tokenizer
    names = [tokenizer.token_bytes(own.token) for own in alone.logprobs]
    for name, token in zip(shown["tokens"], names, strict=True):
        if name.startswith("bytes:"):
            assert bytes.fromhex(name.removeprefix("bytes:").replace("\\x", "")) == token
        else:
            assert name == (token.decode() or "<|endoftext|>")
    assert shown["token_logprobs"] == [own.logprob for own in alone.logprobs]
    for entry, own in zip(shown["top_logprobs"], alone.logprobs, strict=True):
        assert set(entry.values()) == {own.logprob, *(logprob for _, logprob in own.top)}
    for name, at in zip(shown["tokens"], shown["text_offset"], strict=True):
        stopped = at >= len(choice["text"])  # with the stop string, and what else the token has
        assert stopped or name.startswith("bytes:") or choice["text"][at:].startswith(name)

    chunks = [chunk["choices"][0] for chunk in client.events(PATH, **body)]
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"] == alone.text
    for part in shown:
        assert [value for chunk in chunks for value in chunk["logprobs"][part]] == shown[part]


def test_every_sampling_option_has_a_field_or_a_reason_for_none(client):
    from rwkv_engine.server.texts import OPTIONS as FIELDS

    # Texts of a server end at the tokenizer's end of text; the rest is for speed and for another package's programs.
    without = {"stop_tokens", "banned_tokens", "allowed_tokens", "compat", "drafts"}
    assert {*FIELDS, "stop", "logit_bias", "logprobs"} == SamplingOptions.__annotations__.keys() - without


def test_offsets_are_in_characters(talker):
    text = "Der Köhler, süß und müde, ging in den Wald."
    ids = talker.tokenizer.encode(text)
    form = of_completion(talker.tokenizer, [Logprob(token, -1.0, ()) for token in ids], Offsets())
    pairs = list(zip(form["tokens"], form["text_offset"], strict=True))
    assert all(text[at:].startswith(name) for name, at in pairs if not name.startswith("bytes:"))
    assert pairs[-1][1] == len(text) - 1


@given(
    st.lists(
        st.sampled_from([b"", b"a", b"\xc3", b"\xbc", b"\xc3\xbcb", b"\xf0\x9f", b"\xe0", b"\x80", b"\xff\xc3", b"zz"])
    )
)
def test_offsets_in_text_that_is_not_utf8(tokens):
    """The text up to a token's first byte ends with the character of that byte."""
    offsets, before = Offsets(), b""
    for token in tokens:
        found = offsets.add(token)
        if token:
            assert found == len((before + token[:1]).decode(errors="replace")) - 1
        before += token


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": 1}, "prompt", None),
        ({"prompt": ["a", 1]}, "prompt", None),
        ({"prompt": []}, "n", None),
        ({"prompt": [[]]}, None, None),
        ({"prompt": [10**6]}, "prompt", None),
        ({"prompt": [10**30]}, "prompt", None),
        ({"prompt": [-1]}, "prompt", None),
        ({"prompt": "a " * 20000}, "prompt", "context_length_exceeded"),
        ({"prompt": "half \ud800"}, "prompt", None),
        ({"temperature": -1}, "temperature", None),
        ({"temperature": "1"}, "temperature", None),
        ({"temperature": float("nan")}, "temperature", None),
        ({"temperature": True}, "temperature", None),
        ({"top_p": 0}, "top_p", None),
        ({"top_k": -1}, "top_k", None),
        ({"top_k": 2**63}, "top_k", None),
        ({"min_p": 2}, "min_p", None),
        ({"presence_penalty": float("inf")}, "presence_penalty", None),
        ({"presence_penalty": 1e308}, "presence_penalty", None),
        ({"frequency_penalty": -1e308}, "frequency_penalty", None),
        ({"logit_bias": {"1": -1e308}}, "logit_bias", None),
        ({"logit_bias": {f"x{i}": "y" for i in range(1025)}}, "logit_bias", None),
        ({"temperature": 10**400}, "temperature", None),
        ({"penalty_decay": float("-inf")}, "penalty_decay", None),
        ({"seed": -1}, "seed", None),
        ({"seed": 2**64}, "seed", None),
        ({"n": 0}, "n", None),
        ({"n": 81}, "n", None),
        ({"n": 10**30}, "n", None),
        ({"max_tokens": 5000}, "max_tokens", None),
        ({"max_tokens": -1}, "max_tokens", None),
        ({"stop": [""]}, "stop", None),
        ({"stop": ["a"] * 17}, "stop", None),
        ({"stop": "a" * 257}, "stop", None),
        ({"logit_bias": {"x": 1}}, "logit_bias", None),
        ({"logit_bias": {"99999": 1}}, "logit_bias", None),
        ({"logprobs": 21}, "logprobs", None),
        ({"echo": True, "logprobs": 1, "prompt": ["a " * 5000] * 4}, "prompt", "context_length_exceeded"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"model": "gpt-5"}, "model", "model_not_found"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_values(client, body, param, code):
    response = client.post(PATH, {"prompt": "The", "max_tokens": 1} | body)
    assert response.status_code == (404 if code == "model_not_found" else 400)
    error = response.json()["error"]
    assert error["param"] == param
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert (param or "prompt") in error["message"] or "token" in error["message"]
    assert len(error["message"]) < 300


@pytest.mark.parametrize("field", ["logit_bias", "structured_outputs"])
def test_many_wrong_entries_are_one_error(field):
    pydantic = pytest.importorskip("pydantic")
    schemas = pytest.importorskip("rwkv_engine.server.schemas")
    with pytest.raises(pydantic.ValidationError) as error:
        schemas.CompletionRequest(**{field: {f"x{i}": "y" for i in range(1025)}})
    assert error.value.error_count() == 1, "each takes time, in which nobody else is served"
