"""The grammar of texts that call functions: what it allows, and what it refuses."""

from __future__ import annotations

import json

import pytest

from rwkv_engine import RequestError
from rwkv_engine.structured import ToolCalls, compiled

pytest.importorskip("llguidance")

CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
        "additionalProperties": False, "$defs": {"city": {"type": "string", "maxLength": 6}}}  # fmt: skip
FUNCTIONS = {"weather": CITY, "now-2": {"type": "object", "properties": {}, "additionalProperties": False}}


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


PARIS, NOW = call("weather", city="Paris"), call("now-2")


def follows(tales, form, text):
    """Whether a text follows a format, and whether it may end there."""
    inner = compiled(tales.tokenizer, form).matcher().inner
    return all(inner.consume_token(token) for token in tales.tokenizer.encode(text)), inner.is_accepting()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True), ("A king.\n\n<tool", True), (PARIS, True), (f"Well. {PARIS}\n{NOW} Done <b>", True),
        (PARIS.replace(": ", ":").replace('"weather"', ' "weather"'), None),
        ("<tool_call>", False), ("x <tool_call>\n{", False), ("<tool_call> x", None), (call("other"), None),
        (call("weather"), None), (call("weather", city="Constantinople"), None), (call("now-2", a=1), None),
        (f"{PARIS}<tool_call>x", None), (PARIS.replace('"city": ', '"city":\n  '), True),
    ],
)  # fmt: skip
def test_any_text_with_calls(tales, text, expected):
    does_follow, may_end = follows(tales, ToolCalls(FUNCTIONS), text)
    assert (may_end if does_follow else None) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False), ("A king.", None), (PARIS, True), (" " + NOW, True), (f"{PARIS}\n{NOW}", True),
        (PARIS + "\n", False), (PARIS + "\n\n", True), (PARIS + "\n\nx", None), (PARIS + '"\\', True),
        ("\n".join([NOW] * 16), True), ("\n".join([NOW] * 17), None),
    ],
)  # fmt: skip
def test_calls_alone(tales, text, expected):
    form = ToolCalls(FUNCTIONS, required=True, ends=["\n\n", '"\\'])
    does_follow, may_end = follows(tales, form, text)
    assert (may_end if does_follow else None) == expected


@pytest.mark.parametrize("required", [True, False])
def test_one_call(tales, required):
    form = ToolCalls(FUNCTIONS, required=required, most=1)
    assert follows(tales, form, PARIS) == (True, True)
    assert not follows(tales, form, PARIS + "\n")[0]
    assert follows(tales, form, "x")[0] is not required


def test_a_schema_cannot_change_the_librarys_options(tales):
    loose = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}},
             "x-guidance": {"lenient": True, "whitespace_pattern": "x*"}}  # fmt: skip
    with pytest.raises(RequestError, match="uniqueItems"):
        compiled(tales.tokenizer, ToolCalls({"f": loose}))
    del loose["properties"]["a"]["uniqueItems"]
    assert not follows(tales, ToolCalls({"f": loose}), '<tool_call>\n{"name": "f", "arguments": {x')[0]


@pytest.mark.parametrize(
    ("functions", "options", "message"),
    [
        ({}, {}, "functions: got"),
        ([CITY], {}, "functions: got"),
        ({'a"b': CITY}, {}, "functions: got the name"),
        ({"a" * 65: CITY}, {}, "functions: got the name"),
        ({"a\n": CITY}, {}, "functions: got the name"),
        ({"f": {"type": "string"}}, {}, "schema: got the type"),
        ({"f": [1]}, {}, "schema: got"),
        ({"f": {"type": "object", "a": float("nan")}}, {}, "schema: got"),
        ({"f": CITY}, {"most": 2}, "most: got 2"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_function(functions, options, message):
    with pytest.raises(RequestError, match=message):
        ToolCalls(functions, **options)
