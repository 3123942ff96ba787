"""Requests whose texts must have a form."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from served import Client, begun

pytest.importorskip("llguidance", reason="needs the extra structured")

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "sons": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "sons"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "king", "schema": SCHEMA, "strict": True}}
CHATTED = {"messages": [{"role": "user", "content": "Who is it?"}], "max_tokens": 80, "seed": 1}


@pytest.fixture(scope="module")
def client(tales):
    return Client(begun(tales))


def test_json_of_a_schema(client):
    result = client.result(CHAT, **CHATTED, n=3, response_format=FORMAT, logprobs=True)
    for choice in result["choices"]:
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
        assert choice["finish_reason"] == "stop"
        assert choice["logprobs"]["content"]
    same = client.result(CHAT, **CHATTED, n=3, structured_outputs={"json": SCHEMA})
    assert [c["message"] for c in same["choices"]] == [c["message"] for c in result["choices"]]
    chunks = client.events(CHAT, **CHATTED, response_format=FORMAT)
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == result["choices"][0]["message"]["content"]


def test_other_forms(client):
    def text(**form):
        return client.result(COMPLETIONS, prompt="The king: ", max_tokens=60, seed=2, **form)["choices"][0]["text"]

    assert re.fullmatch("[0-9]+ sons", text(structured_outputs={"regex": "[0-9]{1,5} sons"}))
    assert text(structured_outputs={"choice": ["rich", "poor"]}) in ("rich", "poor")
    assert text(structured_outputs={"grammar": 'start: "a" /b+/ "c"'}, stop="c").startswith("ab")
    assert text(structured_outputs={"json_object": True}, temperature=0).startswith("{")
    assert text(response_format={"type": "json_object"}, temperature=0).startswith("{")
    assert text(response_format={"type": "text"}) == text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "json_schema": FORMAT["json_schema"]}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"structured_outputs": {"json": {"unevaluatedItems": False}}}, "structured_outputs: .*unevaluatedItems"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs: the schema is not JSON"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs: got .*expected a JSON schema"),
        ({"structured_outputs": {"regex": "a("}}, "structured_outputs: .*unclosed group"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs: got"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs: expected exactly one"),
        ({"structured_outputs": {}}, "structured_outputs: expected exactly one"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": FORMAT}, "structured_outputs: .*not both"),
        ({"guided_regex": "a"}, "guided_regex: is not supported"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_enforced_is_named(client, fields, message):
    response = client.post(COMPLETIONS, {"prompt": "x", "max_tokens": 1} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert re.search(message, error["message"])
    assert error["param"] == next(iter(fields))


def test_forms_that_are_deep_are_refused(client):
    deep = json.loads('{"items": ' * 500 + "{}" + "}" * 500)
    for form in ({"json": deep}, {"regex": "(" * 5000 + ")" * 5000}):
        response = client.post(COMPLETIONS, {"prompt": "x", "max_tokens": 1, "structured_outputs": form})
        assert response.status_code == 400, response.text
