"""Texts of untrained models have the form that they must have."""

from __future__ import annotations

import json
import re

import jsonschema
import oracle
import pytest
import torch
from checkpoint_files import save_pth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Shape

from rwkv_engine import RWKV, RequestError

pytest.importorskip("llguidance", reason="needs the extra structured")

from rwkv_engine.structured import Grammar
from rwkv_engine.structured.vocabulary import vocabulary_of

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n", 'c"', 7, None]}, "maxItems": 3},
        "home": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"x": {"type": "number"}}}]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
LIST = {
    "type": "array",
    "items": {"$ref": "#/$defs/p"},
    "minItems": 1,
    "maxItems": 2,
    "$defs": {"p": {"type": "boolean"}},
}
SCHEMAS = [
    PERSON,
    LIST,
    {"type": "string", "pattern": "^[a-c]{2,5}é?$"},
    {"enum": [1, "two", [3]]},
    {"type": "boolean"},
]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A model with random weights whose tokens are bytes, parts of characters included; it has no end token."""
    weights = oracle.random_weights(Shape(n_layer=1, n_embd=16, n_att=16, n_ffn=32, n_vocab=256))
    return RWKV.from_pretrained(save_pth(weights, tmp_path_factory.mktemp("model") / "m.pth"))


@pytest.mark.slow
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: str(schema)[:30])
@pytest.mark.parametrize("name", ["untrained", "tales"])
def test_all_answers_are_valid(name, schema, request):
    model = request.getfixturevalue(name)
    grammar = Grammar.json_schema(model, schema)
    prompts = [{"prompt": f"{i}: ", "seed": i, "temperature": 1.5, "presence_penalty": i % 2} for i in range(50)]
    n = 0
    for text in model.generate_many(prompts, 300, allowed_tokens=grammar):
        if text.finish_reason == "stop":
            n += 1
            jsonschema.validate(json.loads(text.text), schema)
        else:
            assert text.finish_reason == "length"
            assert not text.error
    assert n >= 45


def test_a_regular_expression_a_choice_and_a_grammar(tales, untrained):
    for model in (tales, untrained):
        options = {"max_new_tokens": 40, "seed": 1, "temperature": 2.0}
        assert re.fullmatch(
            "[0-9]{3}-[x-z]", model.generate("a", allowed_tokens=Grammar.regex(model, "[0-9]{3}-[x-z]"), **options)
        )
        choices = ["yes", 'no "', "är"]
        texts = {
            model.generate("a", allowed_tokens=Grammar.choice(model, choices), **options | {"seed": i})
            for i in range(8)
        }
        assert texts <= set(choices)
        assert len(texts) > 1
        form = Grammar(model, 'start: "<" inner ">"\ninner: "x" | "(" inner ")"')
        assert re.fullmatch(r"<\(*x\)*>", model.generate("a", allowed_tokens=form, **options))


def test_samples_of_a_prompt_and_texts_alone_are_the_same(tales):
    grammar = Grammar.json_schema(tales, PERSON)
    options = {"max_new_tokens": 60, "allowed_tokens": grammar, "temperature": 1.2, "logprobs": 1}
    together = list(tales.generate_many([{"prompt": "The king: ", "seed": seed} for seed in range(5)], **options))
    for text in together:
        assert text.text == tales.generate("The king: ", seed=text.index, **options)
        assert len(text.generated.logprobs) >= len(text.generated.tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: Grammar.json_schema(m, {"type": "strin"}), "json_schema: Invalid type: strin"),
        (
            lambda m: Grammar.json_schema(m, {"unevaluatedItems": False}),
            "json_schema: Unimplemented keys:.*unevaluatedItems",
        ),
        (lambda m: Grammar.json_schema(m, {"$ref": "http://example.com/x"}), "json_schema: .*not present"),
        (lambda m: Grammar.json_schema(m, [1]), "json_schema: got .*, expected a JSON schema"),
        (lambda m: Grammar.regex(m, "a("), "regex: .*unclosed group"),
        (lambda m: Grammar.regex(m, "(?=a)"), "regex: .*look-around"),
        (lambda m: Grammar(m, "start: other"), "grammar: .*unknown name"),
        (lambda m: Grammar.choice(m, []), "choice: got .*, expected a list of texts"),
        (lambda m: Grammar.choice(m, [""]), "choice: got '', expected texts that are not empty"),
    ],
)
def test_what_cannot_be_enforced_is_refused(make, message, tales):
    with pytest.raises(RequestError, match=message) as caught:
        make(tales)
    assert "\n" not in str(caught.value)


KEYWORDS = ["type", "properties", "items", "anyOf", "allOf", "not", "required", "$ref"]
SCALARS = [True, False, {}, {"type": "string"}, {"type": "integer", "minimum": 3}, {"const": [1]}, {"type": 3}, 1, None]
values = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        st.dictionaries(st.sampled_from(KEYWORDS), inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.lists(inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_any_schema_is_enforced_or_refused(tales, schema):
    try:
        grammar = Grammar.json_schema(tales, schema)
    except RequestError:
        return
    [text] = tales.generate_many(["a"], 80, allowed_tokens=grammar, seed=1, stop=())
    assert not text.error or "cannot be followed" in str(text.error)
    if text.finish_reason == "stop":
        jsonschema.Draft202012Validator(schema).validate(json.loads(text.text))


def test_tokens_that_are_parts_of_characters_are_allowed_where_they_fit(untrained):
    matcher = Grammar.choice(untrained, ["é"]).begin()
    first, last = "é".encode()
    for tokens, expected in (((), first), ((first,), last)):
        bits = torch.from_numpy(matcher(tokens)).view(torch.uint8)
        allowed = [i for i in range(256) if bits[i // 8] >> (i % 8) & 1]
        assert allowed == [expected]
    assert matcher((first, last)) is None


def test_a_vocabulary_is_made_once(tales):
    assert vocabulary_of(tales.tokenizer) is vocabulary_of(tales.tokenizer)
