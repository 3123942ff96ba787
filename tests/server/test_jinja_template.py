"""Chat templates in Jinja: the prompts that they make, and what they cannot do."""

from __future__ import annotations

import time

import pytest
from served import Client, begun

from rwkv_engine import RequestError
from rwkv_engine.server import jinja_template
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.jinja_template import JinjaTemplate
from rwkv_engine.server.schemas import Message

SOURCE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
  {%- set system, messages = messages[0]['content'], messages[1:] %}
{{ system | trim }}

{% endif %}
{%- for message in messages %}
  {%- if message.role not in ('user', 'assistant') %}{{ raise_exception('no ' + message.role) }}{% endif %}
  {%- if loop.index > 20 %}{% break %}{% endif %}
{{ message.role | capitalize }}: {{ message.content }}

{% endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}
"""


def said(*pairs):
    return [Message(role=role, content=content) for role, content in pairs]


def prompt(tales, source, *pairs):
    return JinjaTemplate(source, "t.jinja").prompt(said(*pairs or [("user", "Hi")]), tales.tokenizer)


def test_prompts(tales):
    text = prompt(
        tales, SOURCE, ("developer", " Be kind. "), ("user", "Hi"), ("assistant", "Yes?"), ("user", "<{{x}}>")
    )
    assert text == "<|endoftext|>Be kind.\n\nUser: Hi\n\nAssistant: Yes?\n\nUser: <{{x}}>\n\nAssistant:"
    assert prompt(tales, "{{ messages | tojson }}", ("user", "ü<")) == '[{"role": "user", "content": "ü<"}]'
    assert prompt(tales, "{{ strftime_now('%Y') }}") == time.strftime("%Y")
    assert prompt(tales, "{{ eos_token * 1 if false else 2 * 3 }}") == "6"


def test_replies_are_those_of_the_prompt(tales):
    client = Client(begun(tales, template=JinjaTemplate(SOURCE, "t.jinja", ["\n\n"])))
    body = {"messages": [{"role": "user", "content": "Tell me."}], "seed": 1, "max_tokens": 12}
    [choice] = client.result("/v1/chat/completions", **body)["choices"]
    text = prompt(tales, SOURCE, ("user", "Tell me."))
    expected = tales.generate(text, 12, seed=1, stop=["\n\n"])
    assert choice["message"]["content"] == expected.lstrip()


@pytest.mark.parametrize(
    ("source", "takes"),
    [
        ("{% if tools %}{{ tools | tojson }}{% endif %}", True),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}{% if tools is not none %}x{% endif %}", True),
        ("{% for message in messages %}{{ message.tools }}{% endfor %}", False),
        ("{% set tools = [] %}{{ tools }}", False),
        ("tools {# tools #}", False),
    ],
)
def test_templates_that_take_tools(source, takes):
    assert JinjaTemplate(source, "t.jinja").takes_tools == takes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ messages[5].content.x }}", "has no"),
        ("{{ messages.append(1) }}", "unsafe|no attribute|not safely"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ raise_exception.__globals__.x }}", "unsafe|no attribute|not safely"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{% import 'os' as os %}", "loader"),
        ("{{ 'a' * 10 ** 9 }}", "for multiplying numbers only"),
        ("{{ [0] * 1000000000 }}", "for multiplying numbers only"),
        ("{% set x %}{% for a in range(10000) %}0123456789{% endfor %}{% endset %}"
         "{% for a in range(100) %}{{ x }}{% endfor %}", "more than"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "longer than 0.3 seconds"),
        ("{% for a in range(999999) %}{% endfor %}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_do(tales, monkeypatch, source, message):
    monkeypatch.setattr(jinja_template, "MOST_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(ApiError, match=message) as refused:
        prompt(tales, source)
    assert refused.value.status == 400
    assert len(str(refused.value)) < 300
    assert time.monotonic() - began < 5


def test_files(tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ bos_token }}")
    assert JinjaTemplate.read(file, ["x"]).stop == ("x",)
    file.write_text("\n{% for %}")
    with pytest.raises(RequestError, match=r"t\.jinja, line 2: not a Jinja template"):
        JinjaTemplate.read(file)
    with pytest.raises(RequestError, match="No such file"):
        JinjaTemplate.read(tmp_path / "none.jinja")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--template", "none"], "template: got none, expected one of"),
        (["--template", "none.jinja"], "No such file"),
        (["--stop", "x"], "stop: expected only with a Jinja template"),
    ],
)
def test_the_command_line(call, options, message):
    code, _, error = call("serve", "tales", "--port", "0", *options)
    assert code == 1
    assert message in error
