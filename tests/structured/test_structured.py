"""Formats: whatever a model writes is in its format, and what cannot be guaranteed is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from pathlib import Path

import pytest
import torch
from checkpoint_files import save_pth
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from oracle import Shape, random_weights

from rwkv_engine import RWKV, RequestError
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.many import request_of
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import scheduler_of
from rwkv_engine.ops.draw_tokens import unpacked
from rwkv_engine.structured import Choice, Grammar, JsonObject, JsonSchema, Regex, compiled, fill_masks
from rwkv_engine.text import ByteTokenizer

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

BIT = {"type": "boolean"}
SHORT = {"type": "string", "maxLength": 6}
SMALL = {"type": "integer", "minimum": -20, "maximum": 300}


def closed(**properties):
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


SCHEMAS = [
    closed(name=SHORT, age=SMALL),
    closed(a=BIT, b={"type": "null"}, c={"enum": ["x", 1, None, {"y": []}]}),
    closed(colour={"enum": ["red", "grün", 'a"b\\', "日本", "\U0001f98a"]}),
    {"type": "array", "items": SMALL, "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [BIT, SHORT], "items": False, "minItems": 2},
    {"anyOf": [closed(kind={"const": "a"}, n=SMALL), closed(kind={"const": "b"}, s=SHORT), {"type": "null"}]},
    {"type": "object", "properties": {"a": BIT, "b": SMALL}, "additionalProperties": False},
    {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{3}$"},
    {"type": "string", "format": "date"},
    {"$defs": {"leaf": closed(v=SMALL)}, **closed(left={"$ref": "#/$defs/leaf"}, right={"$ref": "#/$defs/leaf"})},
]


def untrained(folder, n_vocab, tokenizer=None, seed=0):
    path = save_pth(random_weights(Shape(n_layer=1, n_embd=16, n_ffn=32, n_vocab=n_vocab), seed), folder / "model.pth")
    return RWKV.from_pretrained(path, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def small(tales, tmp_path_factory):
    """An untrained model with the vocabulary of `tales`."""
    return untrained(tmp_path_factory.mktemp("small"), tales.config.n_vocab, tales.source / "tokenizer.json")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An untrained model with the World vocabulary, whose tokens can be parts of characters."""
    spec = importlib.util.find_spec("rwkv")
    if spec is None:
        pytest.skip("needs the rwkv package, which has the vocabulary")
    path = Path(spec.submodule_search_locations[0], "rwkv_vocab_v20230424.txt")
    return untrained(tmp_path_factory.mktemp("world"), 65536, path)


def is_met(schema, text):
    # Beyond 2^53 several integers are the same double, of which a schema may name one: they are read as doubles there.
    def number(digits):
        return int(digits) if abs(int(digits)) <= 2**53 else float(digits)

    value = json.loads(text, parse_int=number)
    schema = json.loads(json.dumps(schema), parse_int=number)
    jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    return True


def test_integers_beyond_those_of_doubles():
    assert is_met({"enum": [5.636157446608213e16]}, "56361574466082130")
    with pytest.raises(jsonschema.ValidationError):
        is_met({"enum": [5.636157446608213e16]}, "56361574466082150")
    with pytest.raises(jsonschema.ValidationError):
        is_met({"enum": [5]}, "6")


def answers(model, schemas, n, most=120):
    prompts = [
        {"prompt": "x", "seed": seed, "sample": i, "allowed_tokens": JsonSchema(schema), "temperature": 1 + seed % 3}
        for i, schema in enumerate(schemas)
        for seed in range(n)
    ]
    return [(schemas[r.index // n], r) for r in model.generate_many(prompts, most)]


@pytest.mark.slow
def test_400_answers_of_an_untrained_model(small):
    ended = [(schema, r.text) for schema, r in answers(small, SCHEMAS, 40) if r.finish_reason == "stop"]
    assert len(ended) == 400
    assert all(is_met(schema, text) for schema, text in ended)
    assert len({text for _, text in ended}) > 200


@pytest.mark.slow
def test_100_answers_with_tokens_that_are_parts_of_characters(world):
    found = answers(world, SCHEMAS, 10)
    assert [r.finish_reason for _, r in found] == ["stop"] * 100
    assert all(is_met(schema, r.text) for schema, r in found)
    parts = [world.tokenizer.token_bytes(token) for _, r in found for token in r.tokens]
    assert any(part.decode(errors="replace").count("\ufffd") for part in parts)


def test_a_text_that_is_cut_off_says_so_and_has_followed_its_format(small):
    form = JsonSchema(closed(a={"type": "array", "items": {"type": "string"}, "minItems": 50}), compact=True)
    for seed in range(5):
        stream = small.stream("x", 12, seed=seed, allowed_tokens=form)
        text = "".join(stream)
        assert stream.finish_reason == "length"
        assert text.startswith('{"a":["')
        matcher = compiled(small.tokenizer, form).matcher()
        assert not matcher.read(stream.tokens)


@pytest.mark.parametrize(
    ("form", "holds"),
    [
        (Regex("[a-c]{2}(x|yy)é?"), lambda t: re.fullmatch("[a-c]{2}(x|yy)é?", t)),
        (Choice(["a king", "a king's fox", "ü\n"]), lambda t: t in ("a king", "a king's fox", "ü\n")),
        (
            Grammar('start: "(" start ")" | /[01]/'),
            lambda t: re.fullmatch(r"\(*[01]\)*", t) and t.count("(") == t.count(")"),
        ),
        (Grammar('root ::= "a" ("b" | "c") "d"'), lambda t: t in ("abd", "acd")),
        (JsonSchema(closed(a=SMALL), compact=True), lambda t: re.fullmatch(r'{"a":-?\d+}', t)),
        (JsonSchema({}), lambda t: json.loads(t) is not ...),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_kinds(form, holds, small):
    found = small.generate([{"prompt": "x", "seed": seed} for seed in range(8)], 60, allowed_tokens=form)
    ended = [text for text in found if compiled(small.tokenizer, form).matcher().read(small.tokenizer.encode(text))]
    assert all(holds(text) for text in ended)
    assert ended or form.kind == "json_schema"


def test_an_object_of_any_kind(small):
    for seed in range(4):
        stream = small.stream("x", 300, seed=seed, allowed_tokens=JsonObject(), logit_bias={})
        text = "".join(stream)
        assert text.startswith("{")
        assert stream.finish_reason == "length" or isinstance(json.loads(text), dict)


def test_each_text_of_many_stands_at_its_own_place(tales):
    """One format for several texts, in company of texts with others and with none: as each alone."""
    forms = [
        JsonSchema(SCHEMAS[0]),
        JsonSchema(SCHEMAS[3]),
        None,
        lambda _: torch.full((-(-V // 32),), -1, dtype=torch.int32),
    ]
    V = tales.config.n_vocab
    prompts = [{"prompt": "The", "seed": i, "allowed_tokens": forms[i % 4], "logprobs": 1} for i in range(12)]
    together = {r.index: r for r in tales.generate_many(prompts, 40)}
    for i, prompt in enumerate(prompts):
        alone = tales.stream(max_new_tokens=40, **prompt)
        assert "".join(alone) == together[i].text
        assert alone.finish_reason == together[i].finish_reason
        assert alone.logprobs == together[i].generated.logprobs


OPTIONS = [
    {"temperature": 0.0},
    {"presence_penalty": 2.0, "frequency_penalty": 1.0},
    {"top_p": 0.5, "drafts": 4},
    {"compat": "rwkv"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_other_options(options, small):
    for seed in range(3):
        stream = small.stream("x", 200, seed=seed, allowed_tokens=JsonSchema(SCHEMAS[1]), **options)
        assert is_met(SCHEMAS[1], "".join(stream))
        assert stream.finish_reason == "stop"


def test_the_state_is_that_after_the_text(tales):
    stream = tales.stream("The king: ", 60, seed=3, allowed_tokens=JsonSchema(SCHEMAS[1]))
    text = "".join(stream)
    ids = torch.tensor([[*tales.encode_prompt("The king: "), *stream.tokens]])
    assert tales.tokenizer.decode(stream.tokens) == text
    expected = tales.engine.forward(ids)[1]
    for name, values in expected.fields.items():
        assert torch.allclose(stream.state.fields[name], values, atol=1e-4), name


def allowed(tokenizer, form, text, n_vocab, stops=()):
    matcher = compiled(tokenizer, form).matcher()
    matcher.read(tokenizer.encode(text))
    words = fill_masks([matcher], [stops], n_vocab)
    return set(unpacked(torch.from_numpy(words), n_vocab)[0].nonzero().flatten().tolist())


def test_stop_tokens_are_allowed_where_the_format_may_end():
    tokenizer = ByteTokenizer()
    for size in (256, 257, 500):  # a model's vocabulary can be larger
        assert allowed(tokenizer, Regex("[ab]*"), "ab", size) == {97, 98}
        assert allowed(tokenizer, Regex("[ab]*"), "ab", size, (0, 31, 255)) == {0, 31, 97, 98, 255}
        assert allowed(tokenizer, Regex("[ab]*c"), "ab", size, (0, 98)) == {97, 99}, "a stop token inside"
        assert allowed(tokenizer, Regex("[ab]*"), "ab", size, (10**6,)) == {97, 98}


def test_a_vocabulary_without_an_end_of_text(tmp_path):
    model = untrained(tmp_path, 256)
    assert model.tokenizer.end_of_text is None
    stream = model.stream("x", 60, seed=1, allowed_tokens=JsonSchema(SCHEMAS[1]))
    assert is_met(SCHEMAS[1], "".join(stream))
    assert stream.finish_reason == "stop"


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (
            lambda: JsonSchema({"properties": {"a": {"items": {"not": {}}}}}),
            "json_schema: cannot be guaranteed at /properties/a/items/not",
        ),
        (lambda: JsonSchema({"type": "array", "uniqueItems": True}), "/uniqueItems"),
        (lambda: JsonSchema({"$ref": "http://127.0.0.1/x"}), "http://127.0.0.1/x"),
        (lambda: JsonSchema({"$ref": "#/$defs/x"}), "/\\$defs/x"),
        (lambda: JsonSchema({"type": "strin"}), "strin"),
        (lambda: JsonSchema({"type": "integer", "minimum": 2, "maximum": 1}), "minimum \\(2\\) is greater"),
        (lambda: JsonSchema({"type": "string", "pattern": "(?=a)"}), "look-around"),
        (lambda: JsonSchema({"x-guidance": {"lenient": True}, "not": {}}), "/not"),
        (lambda: JsonSchema({"enum": ["x" * 70_000]}), "expected at most 65536"),
        (lambda: JsonSchema({"const": "\ud800"}), "json_schema: "),
        (lambda: JsonSchema({"a": float("nan")}), "schema: got"),
        (lambda: JsonSchema({"a": {1, 2}}), "schema: got"),
        (lambda: JsonSchema("{}"), "schema: got '{}'"),
        (lambda: JsonSchema(json.loads('{"items":' * 900 + "{}" + "}" * 900)), "recursion|nested"),
        (lambda: Regex("(a"), "regex: .*unclosed group"),
        (lambda: Regex("(" * 30_000 + "a" + ")" * 30_000), "regex: "),
        (lambda: Grammar("start: other"), "grammar: .*other"),
        (lambda: Grammar("start: " + "(" * 30_000 + '"a"' + ")" * 30_000), "grammar: "),
        (lambda: Choice([]), "choice: got"),
        (lambda: Choice("ab"), "choice: got 'ab'"),
        (lambda: Choice(["a", 1]), "choice: expected text"),
    ],
)
def test_what_cannot_be_done_is_refused(form, says, tales):
    with pytest.raises(RequestError, match=says) as caught:
        tales.stream("x", allowed_tokens=form())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_format_needs_a_vocabulary(tales):
    sampler = Sampler(SamplingParams(allowed_tokens=Choice(["a"])))
    with pytest.raises(RequestError, match=r"allowed_tokens: got a Choice, expected structured.compiled\(tokenizer"):
        Request([1], sampler, 5)


def test_equal_formats_are_compiled_once(tales):
    schema = closed(compiled_once=BIT)
    first = compiled(tales.tokenizer, JsonSchema(schema))
    assert compiled(tales.tokenizer, JsonSchema(json.loads(json.dumps(schema)))) is first
    assert compiled(tales.tokenizer, JsonSchema(schema, compact=True)) is not first


def test_an_error_ends_its_text_alone(tales):
    """A token that the format does not allow, which the mask prevents, stands for any failure."""
    requests = [
        request_of(tales.tokenizer, i, "The", 8, None, i, {"seed": 1, "allowed_tokens": form})
        for i, form in enumerate([JsonObject(), JsonObject(), None])
    ]
    requests[1].allowed.inner.consume_token(tales.tokenizer.encode("x")[0])
    scheduler = scheduler_of(tales.engine)
    for request in requests:
        scheduler.add(request)
    scheduler.wait(lambda: all(request.finish_reason for request in requests))
    assert [request.finish_reason for request in requests] == ["length", "error", "length"]
    assert str(requests[1].error).startswith("the text cannot follow its format beyond 0 tokens")


def test_threads_share_a_format(tales):
    form, texts = JsonSchema(SCHEMAS[0]), {}
    run = lambda i: texts.update({i: tales.generate("The", 40, seed=i, allowed_tokens=form)})  # noqa: E731
    threads = [threading.Thread(target=run, args=[i]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {i: tales.generate("The", 40, seed=i, allowed_tokens=form) for i in range(6)}


def test_a_model_that_calls_itself_in_a_step_gets_an_error(tales):
    with pytest.raises(RequestError, match="in the middle of a step"):
        tales.generate("The", allowed_tokens=lambda _: tales.generate("The", 1))
    assert tales.generate("The", 1, seed=1)


KEYS = [
    "type",
    "properties",
    "required",
    "items",
    "enum",
    "minimum",
    "pattern",
    "anyOf",
    "not",
    "$ref",
    "maxLength",
    "q",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 9)
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.sampled_from(["string", "object", "array", "integer", "#", "#/q"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=2), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), seed=st.integers(0, 9))
def test_any_schema_is_refused_or_met(schema, seed, small):
    try:
        stream = small.stream("x", 25, seed=seed, allowed_tokens=JsonSchema(schema))
    except RequestError as error:
        event(str(error)[:30])
        return
    try:
        text = "".join(stream)
    except RequestError as error:  # nothing is an example of the schema, such as {"$ref": ""}
        if "beyond 0 tokens: no token may follow there" in str(error):
            return
        raise
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError:
        return  # a schema of an older draft, such as a list as `items`, which the library reads as well
    if stream.finish_reason == "stop":
        assert is_met(schema, text)


def test_a_schema_of_which_nothing_is_an_example(tales):
    with pytest.raises(RequestError, match="beyond 0 tokens: no token may follow there, and the text may not end"):
        tales.generate("The king", 4, allowed_tokens=JsonSchema({"$ref": "#"}))
