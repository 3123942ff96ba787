"""`generate --json-schema` and `--regex`."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("llguidance")


def test_a_schema_and_an_expression(call, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}')
    code, out, _ = call("generate", "x", "--seed", "1", "--json", "--json-schema", str(schema))
    assert code == 0
    assert 1 <= len(json.loads(json.loads(out)["text"])) <= 3
    code, out, _ = call("generate", "Age: ", "--seed", "1", "--regex", "[0-9]{3}")
    assert code == 0
    assert out.removeprefix("Age: ").strip().isdigit()


@pytest.mark.parametrize(("content", "says"), [("{", "is not JSON"), ("[]", "schema: got []"), ('{"not": {}}', "/not")])
def test_a_wrong_schema(call, tmp_path, content, says):
    schema = tmp_path / "schema.json"
    schema.write_text(content)
    code, _, err = call("generate", "x", "--json-schema", str(schema))
    assert code != 0
    assert says in err


def test_two_formats(call, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text("{}")
    code, _, err = call("generate", "x", "--regex", "a", "--json-schema", str(schema))
    assert code == 2
    assert "not both" in err
