"""Values of `multipleOf` that would take all memory are refused before the library sees them."""

from __future__ import annotations

import json

import pytest

from rwkv_engine import RequestError
from rwkv_engine.structured import Grammar, JsonSchema, compiled
from rwkv_engine.text import ByteTokenizer

pytest.importorskip("llguidance")

LARGE = {"type": "integer", "multipleOf": 1_000_003}
ESCAPED = json.dumps(LARGE).replace("multipleOf", "multiple\\u004ff")


@pytest.mark.parametrize(
    "form",
    [
        JsonSchema(LARGE),
        JsonSchema({"type": "number", "multipleOf": 1.0000003}),
        JsonSchema({"type": "array", "items": {"anyOf": [{"type": "null"}, LARGE]}}),
        JsonSchema({"allOf": [{"type": "integer", "multipleOf": 1009}, {"multipleOf": 2003}]}),
        JsonSchema({"$defs": {"a": {"multipleOf": 1009}}, "allOf": [{"$ref": "#/$defs/a"}, {"multipleOf": 2003}]}),
        Grammar(f"start: %json {ESCAPED}"),
        Grammar(f'start: a | %json {{"type": "null"}}\na: %json\n{ESCAPED}'),
    ],
)
def test_large_divisors_are_refused(form):
    with pytest.raises(RequestError, match="multipleOf: got values with the least common multiple"):
        compiled(ByteTokenizer(), form)


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        (JsonSchema({"type": "number", "multipleOf": 0.01}), "12.34", "12.345"),
        (JsonSchema({"type": "integer", "multipleOf": 1_000_000}), "3000000", "3000001"),
        (JsonSchema({"allOf": [{"type": "integer", "multipleOf": 60}, {"multipleOf": 90}]}), "360", "120"),
        (Grammar('start: %json {"type": "integer", "multipleOf": 7}  // %json here'), "14", "15"),
    ],
)
def test_usual_divisors(form, right, wrong):
    for text, is_right in ((right, True), (wrong, False)):
        matcher = compiled(ByteTokenizer(), form).matcher()
        can_follow = all(matcher.inner.consume_token(token) for token in ByteTokenizer().encode(text))
        assert (can_follow and matcher.inner.is_accepting()) == is_right
