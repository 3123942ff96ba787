"""`response_format` and `structured_outputs`: texts in a format, and requests that are refused."""

from __future__ import annotations

import json

import pytest
from served import Client, begun

from rwkv_engine.structured import Choice, JsonSchema, StructuredOutputError, compiled

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Tell me of the sea."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "is_king": {"type": "boolean"}},
    "required": ["name", "is_king"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}


def is_met(text):
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


@pytest.mark.parametrize("strict", [True, False, None])
def test_completions_are_those_of_the_library(client, tales, strict):
    form = {"type": "json_schema", "json_schema": {"name": "p", "description": "x", "schema": SCHEMA, "strict": strict}}
    body = {"prompt": "The king", "seed": 3, "max_tokens": 60, "response_format": form}
    [choice] = client.result(COMPLETIONS, **body)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == tales.generate("The king", 60, seed=3, allowed_tokens=JsonSchema(SCHEMA))
    assert is_met(choice["text"])
    chunks = client.events(COMPLETIONS, **body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_with_samples_penalties_biases_and_log_probabilities(client):
    body = {"messages": HELLO, "n": 4, "seed": 1, "max_tokens": 80, "response_format": FORMAT, "logprobs": True}
    body |= {"top_logprobs": 2, "presence_penalty": 1.0, "logit_bias": {"32": -5}, "top_p": 0.9, "temperature": 1.5}
    choices = client.result(CHAT, **body)["choices"]
    assert all(is_met(choice["message"]["content"]) for choice in choices)
    assert len({choice["message"]["content"] for choice in choices}) > 1
    for choice in choices:
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert "".join(tokens) == choice["message"]["content"]


def test_a_stop_string_and_the_limit_can_cut_it_off(client):
    body = {"messages": HELLO, "seed": 1, "response_format": FORMAT}
    [choice] = client.result(CHAT, max_tokens=2, **body)["choices"]
    assert choice["finish_reason"] == "length"
    [choice] = client.result(CHAT, max_tokens=60, stop='"', **body)["choices"]
    assert choice["message"]["content"].strip() == "{"


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        ({"json": SCHEMA}, is_met),
        (
            {"json": json.dumps(SCHEMA), "disable_any_whitespace": True},
            lambda t: is_met(t) and t.startswith('{"name":"'),
        ),
        ({"regex": " ?[0-9]{3}"}, lambda t: t.strip().isdigit() and len(t.strip()) == 3),
        ({"choice": [" yes", "no\n\nUser: x"]}, lambda t: t in (" yes", "no\n\nUser: x")),
        ({"grammar": 'start: "a" "b" | "c"'}, lambda t: t in ("ab", "c")),
    ],
    ids=lambda value: str(value)[:20],
)
def test_structured_outputs(client, asked, holds):
    for seed in range(4):
        body = {"structured_outputs": asked, "max_tokens": 150, "seed": seed}
        [choice] = client.result(COMPLETIONS, prompt="The king", **body)["choices"]
        assert choice["finish_reason"] == "stop"
        assert holds(choice["text"])
        chunks = client.events(CHAT, messages=HELLO, **body)
        assert holds("".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks))


def test_any_json_object(client):
    body = {"max_tokens": 4, "seed": 2}
    for asked in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        assert client.result(COMPLETIONS, prompt="The king", **body, **asked)["choices"][0]["text"].startswith("{")


def test_text_changes_nothing(client):
    body = {"prompt": "The king", "seed": 3, "max_tokens": 9}
    plain = client.result(COMPLETIONS, **body)["choices"]
    assert client.result(COMPLETIONS, **body, response_format={"type": "text"})["choices"] == plain
    assert client.result(COMPLETIONS, **body, response_format=None, structured_outputs=None)["choices"] == plain


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def structured(**fields):
    return {"structured_outputs": fields}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            schema({"properties": {"a": {"not": {}}}}),
            "response_format: json_schema: cannot be guaranteed at /properties/a/not",
        ),
        (schema({"type": "strin"}), "response_format: json_schema: Invalid type"),
        (schema({"$ref": "file:///etc/passwd"}), "response_format: json_schema: "),
        (schema({"enum": ["x" * 70_000]}), "response_format: json_schema: got 7"),
        (schema([]), "response_format"),
        (schema("x"), "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format: needs json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format: has no field 'schema'"),
        ({"response_format": "json"}, "response_format"),
        (structured(), "structured_outputs: expected exactly one"),
        (structured(regex="a", choice=["b"]), "structured_outputs: expected exactly one"),
        (structured(regex="(a"), "structured_outputs: regex: "),
        (structured(choice=[]), "structured_outputs.choice"),
        (structured(grammar="start: b"), "structured_outputs: grammar: "),
        (structured(json="{"), "structured_outputs: json: "),
        (structured(json="1"), "structured_outputs: schema: "),
        (structured(whitespace_pattern=" "), "structured_outputs.whitespace_pattern"),
        (
            structured(regex="a") | {"response_format": {"type": "json_object"}},
            "structured_outputs: cannot be combined",
        ),
    ],
    ids=lambda value: str(value)[-50:],
)
def test_what_cannot_be_done_is_refused(client, path, body, says):
    response = client.post(path, {"prompt": "x", "messages": HELLO, "max_tokens": 1} | body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"].startswith(says)
    assert error["param"] == says.partition(":")[0].partition(".")[0]


def test_a_format_that_becomes_too_complex_is_the_clients_error(tales, monkeypatch):
    client = Client(begun(tales))
    choice = compiled(tales.tokenizer, Choice(["abc"]))
    broken = choice.matcher()
    broken.inner.consume_token(tales.tokenizer.encode("x")[0])
    monkeypatch.setattr(type(choice), "matcher", lambda self: broken)
    body = {"prompt": "x", "structured_outputs": {"choice": ["abc"]}}
    response = client.post(COMPLETIONS, body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_format")


def test_without_the_library_the_server_says_so(client, monkeypatch):
    def missing(tokenizer, form):
        raise StructuredOutputError("pip install 'rwkv-engine[structured]'")

    monkeypatch.setattr("rwkv_engine.server.texts.compiled", missing)
    response = client.post(COMPLETIONS, {"prompt": "x", "response_format": FORMAT})
    assert (response.status_code, response.json()["error"]["code"]) == (501, "not_installed")
    assert client.post(COMPLETIONS, {"prompt": "x", "response_format": {"type": "text"}}).status_code == 200
