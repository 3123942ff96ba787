"""Calls are told from text, whatever the sizes of the pieces are, and nothing else is taken for a call."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi")
from rwkv_engine.server.call_reader import CallReader

NAMES = {"f", "get_weather"}
WORDS = st.text('ab \n<{"/', max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
    | st.sampled_from(["</tool_call>", '"</tool_call>\\', "<tool_call>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def written(name, arguments, indent=None):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, indent=indent)}\n</tool_call>"


def read(text, sizes=(), names=NAMES, only_calls=False):
    reader, said, calls = CallReader(names, only_calls), "", []
    for size in sizes:
        content, found = reader.read(text[:size])
        said, calls, text = said + content, calls + found, text[size:]
    content, found = reader.read(text, is_end=True)
    calls += found
    assert reader.n_calls == len(calls)
    assert len({call.id for call in calls}) == len(calls)
    return said + content, [(call.name, call.arguments) for call in calls]


@given(
    st.lists(st.tuples(st.text("ab\n .", max_size=6), st.sampled_from(sorted(NAMES)),
                       st.dictionaries(st.text(max_size=5), VALUES, max_size=3)), max_size=3),
    st.text("ab\n .", max_size=6),
    st.lists(st.integers(1, 9)),
    st.sampled_from([None, 1]),
)  # fmt: skip
def test_calls_and_the_text_around_them(parts, last, sizes, indent):
    text = "".join(before + written(name, arguments, indent) for before, name, arguments in parts) + last
    said, calls = read(text, sizes)
    plain = "".join(before for before, _, _ in parts) + last
    assert said == (plain.strip() if parts else plain.lstrip())
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [(name, own) for _, name, own in parts]


@given(
    st.lists(WORDS | st.sampled_from(["<tool_call>", "</tool_call>", written("f", {"a": 1}), written("g", {})])),
    st.lists(st.integers(1, 15)),
    st.booleans(),
)
def test_pieces_change_nothing(parts, sizes, only_calls):
    text = "".join(parts)
    assert read(text, sizes, only_calls=only_calls) == read(text, only_calls=only_calls)


@pytest.mark.parametrize(
    "body",
    ["", "{}", "f", '{"name": "f"}', '{"name": "f", "arguments": "{}"}', '{"name": "g", "arguments": {}}',
     '{"name": ["f"], "arguments": {}}', '{"name": "f", "arguments": {"a": NaN}}', '{"name": "f", "arguments": {}} x',
     '{"name": "f", "arguments": {}', '["name", "f"]', '{"name": "f" "arguments": {}}', '{1: 2}', "it's 5\" long",
     '{"name": "f", "arguments": ' + "[" * 100_000],
)  # fmt: skip
def test_what_is_no_call_stays_text(body):
    text = f"<tool_call>{body}</tool_call>"
    assert read(text) == (text, [])
    said, calls = read(text + "\n" + written("f", {"a": 1}))
    assert (said, calls) == (text, [("f", '{"a": 1}')])


def test_arguments_are_as_they_were_written():
    own = '{ "a":1e999, "b" : 1.50,\n"c": ' + "9" * 5000 + ', "d": "\\u00e4\\ud800"}'
    text = f'<tool_call> {{"arguments" : {own} , "name": "f"}}</tool_call>'
    assert read(text) == ("", [("f", own)])


def test_an_unfinished_call_stays_text():
    text = "a " + written("f", {"a": "x"})
    for n in range(len("a <tool_call>"), len(text) - 1):
        assert read(text[:n]) == (text[:n], [])


def test_around_calls_alone_there_is_no_text():
    text = " " + written("f", {}) + "\n" + written("f", {})
    assert read(text + "\n\nUser:", only_calls=True) == ("", [("f", "{}")] * 2)
    assert read(text + "\n<tool_call>\n{", only_calls=True) == ("", [("f", "{}")] * 2)
