"""Tool calls over the chat endpoint, as the official client makes and reads them."""

from __future__ import annotations

import json
import signal

import pytest
from served import Client, begun, in_thread, is_idle, openai, wait_until

from rwkv_engine.server.jinja_template import JinjaTemplate
from rwkv_engine.server.schemas import ChatRequest
from rwkv_engine.structured import StructuredOutputError
from rwkv_engine.text.templates import TEMPLATES

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

PATH = "/v1/chat/completions"
SOURCE = """\
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}
{%- for message in messages %}
{{- message.role }}: {{ message.content }}
{%- for call in message.tool_calls or [] %}<{{ call.id }} {{ call.function.name }} {{ call.function.arguments.city }}>
{%- endfor %}
{%- if message.role == 'tool' %}<{{ message.name }} {{ message.tool_call_id }}>{% endif %}

{% endfor %}assistant:"""
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rom"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"],
          "additionalProperties": False}  # fmt: skip
SCHEMAS = {"weather": CITY, "greet": PERSON, "now": {"type": "object", "maxProperties": 0}}
ASKED = [{"role": "user", "content": "How is the weather?"}]


def tool(name, **own):
    return {"type": "function", "function": {"name": name, **own}}


TOOLS = [tool("weather", description="Tells it.", parameters=CITY), tool("greet", parameters=PERSON), tool("now")]
BODY = {"messages": ASKED, "tools": TOOLS, "max_tokens": 300}
NAMED = {"type": "function", "function": {"name": "greet"}}


@pytest.fixture(scope="module")
def template():
    return JinjaTemplate(SOURCE, "t.jinja", ["\n\n", "<|im_end|>"])


@pytest.fixture(scope="module")
def tooled(tales, template):
    client = Client(begun(tales, template=template))
    yield client
    wait_until(lambda: is_idle(client.service))


@pytest.fixture(scope="module")
def ai(tales, template):
    server, thread = in_thread(tales, template=template)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
    server.handle_exit(signal.SIGTERM, None)
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def calls_first(tales):
    """Options with which the model begins with a call: each part of its mark is likelier than the next, once."""
    parts = tales.tokenizer.encode("<tool_call>")
    assert len(set(parts)) == len(parts)
    biases = {str(part): 1000.0 - 100 * i for i, part in enumerate(parts)}
    return {"logit_bias": biases, "presence_penalty": 2000.0, "temperature": 0}


def are_valid(calls):
    for call in calls:
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return len({call.id for call in calls}) == len(calls) > 0


def test_a_weak_model_makes_valid_calls_where_it_must(ai):
    names = set()
    for temperature in (0.7, 1.8):
        made = ai.chat.completions.create(
            model="tales", **BODY, tool_choice="required", n=8, seed=1, temperature=temperature
        )
        for choice in made.choices:
            assert choice.finish_reason == ("tool_calls" if len(choice.message.tool_calls) < 16 else "length")
            assert choice.message.content is None
            assert are_valid(choice.message.tool_calls)
            names |= {call.function.name for call in choice.message.tool_calls}
    assert names == set(SCHEMAS), "else the test would not see that every function can be called"


def test_a_named_function_is_called_once(ai):
    made = ai.chat.completions.create(model="tales", **BODY, tool_choice=NAMED, n=4, seed=2)
    for choice in made.choices:
        assert [call.function.name for call in choice.message.tool_calls] == ["greet"]
        assert are_valid(choice.message.tool_calls)
        assert choice.finish_reason == "tool_calls"
    assert made.usage.completion_tokens > 40


def streamed(ai, n, **options):
    """The choices of a stream, put together as clients do, and its usage."""
    choices = [{"content": None, "calls": [], "reason": None} for _ in range(n)]
    *chunks, last = ai.chat.completions.create(
        model="tales", stream=True, stream_options={"include_usage": True}, n=n, **options
    )
    for chunk in chunks:
        assert "tool_call>" not in chunk.model_dump_json()
        [part] = chunk.choices
        choice, delta = choices[part.index], part.delta
        choice["reason"] = part.finish_reason
        if delta.content is not None:
            choice["content"] = (choice["content"] or "") + delta.content
        for call in delta.tool_calls or ():
            if call.index == len(choice["calls"]):
                assert call.id
                assert call.type == "function"
                choice["calls"].append([call.function.name, ""])
            choice["calls"][call.index][1] += call.function.arguments
    return choices, last.usage


@pytest.mark.parametrize(
    "options", [{"tool_choice": "required"}, {"tool_choice": NAMED}, {"parallel_tool_calls": False}]
)
def test_streams_are_the_same(ai, options):
    options = BODY | options | {"seed": 3, "max_tokens": 120}
    uncached = {"no_cache": True}
    whole = ai.chat.completions.create(model="tales", n=4, extra_body=uncached, **options)
    choices, usage = streamed(ai, 4, extra_body=uncached, **options)
    assert usage == whole.usage
    for choice, expected in zip(choices, whole.choices, strict=True):
        calls = expected.message.tool_calls or ()
        assert choice["calls"] == [[call.function.name, call.function.arguments] for call in calls]
        assert (choice["content"], choice["reason"]) == (expected.message.content, expected.finish_reason)


def test_the_model_decides_by_itself(ai, calls_first):
    one = {"parallel_tool_calls": False}
    made = ai.chat.completions.create(model="tales", **BODY | calls_first, **one)
    [choice] = made.choices
    assert choice.message.content is None
    assert choice.finish_reason == "tool_calls"
    assert are_valid(choice.message.tool_calls)
    [streams], _ = streamed(ai, 1, **BODY | calls_first, **one)
    [call] = choice.message.tool_calls
    assert streams["calls"] == [[call.function.name, call.function.arguments]]
    assert streams["content"] is None
    [choice] = ai.chat.completions.create(model="tales", **BODY | calls_first | {"max_tokens": 12}).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert choice.message.content.startswith("<tool_call>\n{")


def test_a_reply_without_calls_is_that_of_the_prompt(tooled, tales, template):
    body = BODY | {"seed": 5, "max_tokens": 12}
    request = ChatRequest(**body)
    shown = [one.model_dump(exclude_none=True) for one in request.tools]
    expected = tales.generate(template.prompt(request.messages, tales.tokenizer, shown), 12, seed=5)
    for options in ({}, {"tool_choice": "auto"}, {"parallel_tool_calls": True}, {"stop": ["zzz"]}):
        [choice] = tooled.result(PATH, **body, **options)["choices"]
        assert choice["message"] == {"role": "assistant", "content": expected.lstrip(), "refusal": None}
        chunks = tooled.events(PATH, **body, **options)
        assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == expected.lstrip()


def test_without_a_choice_the_model_learns_of_no_tools(tooled):
    body = {"messages": ASKED, "seed": 1, "max_tokens": 9}
    plain = tooled.result(PATH, **body)["choices"]
    for options in ({"tools": TOOLS, "tool_choice": "none"}, {"tools": []}, {"tools": None, "tool_choice": "auto"}):
        assert tooled.result(PATH, **body, **options)["choices"] == plain
    assert tooled.result(PATH, **body, tools=TOOLS)["usage"]["prompt_tokens"] > 100


def test_the_result_of_a_call_goes_back(ai, tales, template):
    made = ai.chat.completions.create(model="tales", **BODY, tool_choice=NAMED, seed=1).choices[0].message
    [call] = made.tool_calls
    history = [*ASKED, made.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    reply = ai.chat.completions.create(model="tales", messages=history, tools=TOOLS, seed=1, max_tokens=8)
    shown = [one.model_dump(exclude_none=True) for one in ChatRequest(**BODY).tools]
    prompt = template.prompt(ChatRequest(messages=history).messages, tales.tokenizer, shown)
    assert f"<{call.id} greet >" in prompt, "arguments are an object, which has no city"
    assert f"tool: Sunny.<greet {call.id}>" in prompt
    assert prompt.startswith('{"type": "function", "function": {"name": "weather", "description": "Tells it."')
    stop = ["\n\n", "<|im_end|>"]
    assert reply.choices[0].message.content == tales.generate(prompt, 8, seed=1, stop=stop).lstrip()
    # Without tools the conversation can still go on.
    assert ai.chat.completions.create(model="tales", messages=history, max_tokens=2).choices


def test_the_template_ends_calls_too(tooled, tales):
    biases = {str(token): 100 for token in tales.tokenizer.encode("|im_end|>")}
    options = {"tool_choice": "required", "seed": 1, "logit_bias": biases}
    [choice] = tooled.result(PATH, **BODY, **options)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    chunks = tooled.events(PATH, **BODY, **options)
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)


def test_without_the_library_calls_are_read_but_not_guaranteed(tooled, monkeypatch, calls_first):
    def missing(tokenizer, form):
        raise StructuredOutputError("pip install 'rwkv-engine[structured]'")

    monkeypatch.setattr("rwkv_engine.server.tools.compiled", missing)
    [choice] = tooled.result(PATH, **BODY | calls_first | {"max_tokens": 9})["choices"]
    assert choice["message"]["content"].startswith("<tool_call>")
    for options, param in (
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ):
        response = tooled.post(PATH, BODY | options)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (501, "not_installed", param)


def with_schema(schema, **own):
    return {"tools": [TOOLS[0], tool("bad", parameters=schema)], **own}


def called(**changes):
    call = {"id": "c1", "type": "function", "function": {"name": "greet", "arguments": "{}"}} | changes
    return {"role": "assistant", "tool_calls": [call]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (with_schema({"properties": {"a": {"uniqueItems": True}}}),
         "tools.1.function.parameters: cannot be guaranteed at /properties/a/uniqueItems"),
        (with_schema({"type": "array"}), "tools.1.function.parameters: got the type"),
        (with_schema({"type": "object", "properties": {"a": {"type": "strin"}}}), "tools.1.function.parameters: "),
        (with_schema({"$ref": "file:///etc/passwd"}), "tools.1.function.parameters: "),
        (with_schema({"properties": {"a": {"enum": ["x" * 70_000]}}}), "tools.1.function.parameters: got 70"),
        (with_schema({"properties": {"a": {"pattern": "(a"}}}, tool_choice="required"), "tools.1.function.parameters:"),
        (with_schema([]), "tools.1.function.parameters:"),
        ({"tools": [tool(f"f{i}", parameters={"properties": {"a": {"enum": ["x" * 900]}}}) for i in range(80)]},
         "tools: got "),
        ({"tools": [tool("a b")]}, "tools.0.function.name:"),
        ({"tools": [tool("")]}, "tools.0.function.name:"),
        ({"tools": [tool("a" * 65)]}, "tools.0.function.name:"),
        ({"tools": [tool("now\n")]}, "tools.0.function.name:"),
        ({"tools": [{"type": "function"}]}, "tools.0.function:"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type:"),
        ({"tools": "now"}, "tools:"),
        ({"tools": [tool("now"), tool("f"), tool("now")]}, "tools.2.function.name: got 'now' again"),
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools:"),
        ({"tool_choice": "any"}, "tool_choice:"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function:"),
        ({"tool_choice": {"type": "function", "function": {"name": "a b"}}}, "tool_choice.function.name:"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice: got 'other', expected"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice: got 'required', expected only with tools"),
        ({"tools": None, "tool_choice": NAMED}, "tool_choice: got 'greet', expected only with tools"),
        ({"response_format": {"type": "json_object"}}, "response_format: cannot be combined with tools"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs: cannot be combined with tools"),
        ({"logprobs": True}, "logprobs: cannot be combined with tools"),
        ({"stop": "x", "tool_choice": "required"}, "stop: could end a call"),
        ({"stop": ["x"], "tool_choice": NAMED}, "stop: could end a call"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls:"),
        ({"continue_final_message": True}, "continue_final_message: is not supported"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id: is missing"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c1"}]}, "messages[0].tool_call_id: got 'c1'"),
        ({"messages": [called(), {"role": "tool", "tool_call_id": "c1"}]}, "messages.1.content: is missing"),
        ({"messages": [called() | {"role": "user", "content": "x"}]}, "messages.0.tool_calls: expected in messages of"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content: is missing"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages.0.content: is missing"),
        ({"messages": [called(id="")]}, "messages.0.tool_calls.0.id:"),
        ({"messages": [called(function={"name": "f"})]}, "messages.0.tool_calls.0.function.arguments:"),
        ({"messages": [called(function={"name": "f", "arguments": "[]"})]},
         "messages.0.tool_calls.0.function.arguments: expected a JSON object"),
        ({"messages": [called(function={"name": "f", "arguments": "["*100_000})]},
         "messages.0.tool_calls.0.function.arguments: expected a JSON object"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(tooled, body, says):
    response = tooled.post(PATH, BODY | {"max_tokens": 1} | body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"].startswith(says)
    assert error["param"] == says.partition(":")[0].partition(".")[0].partition("[")[0]


@pytest.mark.parametrize("template", [TEMPLATES["bob-alice"], JinjaTemplate("{{ messages }}", "t.jinja")], ids="ab")
def test_templates_without_a_place_for_tools_refuse_them(tales, template):
    client = Client(begun(tales, template=template))
    result = {"role": "tool", "content": "x", "tool_call_id": "c1"}
    for body, place in (
        ({"tools": TOOLS}, "tools"),
        ({"tools": TOOLS, "tool_choice": "none"}, "tools"),
        ({"messages": [*ASKED, called(), result, *ASKED]}, "messages[1]"),
        ({"messages": [result]}, "messages[0]"),
    ):
        response = client.post(PATH, {"messages": ASKED, "max_tokens": 1} | body)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "unsupported_parameter")
        assert error["message"].startswith(f"{place}: this server's template has no place for tools; start it with")
        assert error["param"] == place.partition("[")[0]
