"""`/v1/chat/completions`: the prompt of a conversation, and replies as `Chat` generates them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import Client, begun

from rwkv_engine.chat import Chat
from rwkv_engine.server.chat import begun_prompt, opening_of, prompt_of
from rwkv_engine.server.schemas import ChatRequest
from rwkv_engine.text.templates import TEMPLATES

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Tell me of the sea."}]


def messages(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_replies_are_those_of_chat(tales, name):
    client = Client(begun(tales, template=TEMPLATES[name]))
    conversation = Chat(tales, TEMPLATES[name], max_new_tokens=12, seed=4, top_p=0.6)
    said = []
    for message in ("Tell me of the sea.", "And of\n\nthe fox?", "Why?"):
        said.append(message)
        reply = "".join(conversation.reply(message))
        if not conversation.turns[-1].reply.startswith(" ") or len(reply.strip()) < len(reply):
            break  # the text of the next turn would differ in its blanks
        result = client.result(PATH, messages=messages(*said), seed=4, top_p=0.6, max_tokens=12)
        [choice] = result["choices"]
        assert choice["message"] == {"role": "assistant", "content": reply, "refusal": None}
        chunks = client.events(PATH, messages=messages(*said), seed=4, top_p=0.6, max_tokens=12)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
        assert "".join(delta.get("content", "") for delta in deltas) == reply
        assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
        said.append(reply)
    assert said


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(list(TEMPLATES.values())),
    st.lists(st.text("ab \n", min_size=1).filter(str.strip), min_size=1, max_size=5).filter(lambda t: len(t) % 2),
    st.none() | st.text("ab \n"),
)
def test_prompts(template, texts, system):
    body = messages(*texts)
    if system is not None:
        body = [{"role": "developer", "content": [{"type": "text", "text": system}]}, *body]
    prompt = prompt_of(template, ChatRequest(messages=body).messages)
    # What the model reads turn after turn, as `Chat` does, with replies that begin as models begin them.
    expected = template.preamble if system is None else template.introduced(system)
    for i, text in enumerate(texts):
        if i % 2 == 0:
            expected += template.turn_of(text)
        else:
            expected += ("" if expected.endswith("\n") else " ") + template.clean(text) + template.between
    assert prompt == expected + template.opening


def test_a_system_message_is_the_introduction(client, tales):
    body = [{"role": "system", "content": "A tale."}, *HELLO]
    prompt = "A tale.\n\nBob: Tell me of the sea.\n\nAlice:"
    expected = tales.generate(prompt, 6, seed=2, stop=["\n\n"]).lstrip()
    [choice] = client.result(PATH, messages=body, seed=2, max_tokens=6)["choices"]
    assert choice["message"]["content"] == expected


@pytest.mark.parametrize("name", ["bob-alice", "instruction"])
def test_a_reply_is_continued(tales, name):
    client = Client(begun(tales, template=TEMPLATES[name]))
    template, begun_reply = TEMPLATES[name], "Once upon a"
    body = {"messages": messages("Tell me of the sea.", begun_reply), "seed": 2, "max_tokens": 8, "temperature": 0}
    assert client.post(PATH, body).status_code == 400
    prompt = template.conversation([], "Tell me of the sea.") + template.blank + begun_reply
    expected = tales.generate(prompt, 8, temperature=0, stop=list(template.stop))
    assert expected.startswith(" "), "else the test would not see that the blank is kept"
    [choice] = client.result(PATH, **body, continue_final_message=True)["choices"]
    assert choice["message"]["content"] == expected
    chunks = client.events(PATH, **body, continue_final_message=True)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("begun_reply", ["", " ", " The\n\nking \n"])
def test_what_a_continued_reply_follows(template, begun_reply):
    body = ChatRequest(messages=messages("Hello.", "Yes?", "Go on.", begun_reply))
    prompt = begun_prompt(template, body.messages)
    before = prompt_of(template, body.messages[:-1])
    assert prompt == before + (template.blank + "The\n\nking \n" if begun_reply.strip() else "")


def test_a_block_of_thoughts_is_begun_only_where_the_reply_is_free():
    template = TEMPLATES["g1-think"]
    assert opening_of(template, ChatRequest(messages=HELLO)) == " <think"
    assert opening_of(template, ChatRequest(messages=HELLO, response_format={"type": "text"})) == " <think"
    assert opening_of(template, ChatRequest(messages=HELLO, response_format={"type": "json_object"})) == ""
    assert opening_of(template, ChatRequest(messages=messages("a", "b"), continue_final_message=True)) == ""
    assert opening_of(template, ChatRequest(messages=[])) == ""


def test_thoughts_are_shown_from_their_beginning(tales):
    expected = tales.generate("User: Hi.\n\nAssistant: <think", 6, temperature=0)
    client = Client(begun(tales, template=TEMPLATES["g1-think"]))
    body = {"messages": messages("Hi."), "max_tokens": 6, "temperature": 0}
    assert client.result(PATH, **body)["choices"][0]["message"]["content"] == "<think" + expected
    chunks = client.events(PATH, **body)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "<think" + expected


@pytest.mark.parametrize("said", [HELLO, HELLO + messages("a", "b", "c"), messages("x", "a")[1:]])
def test_only_a_reply_can_be_continued(client, said):
    response = client.post(PATH, {"messages": said, "continue_final_message": True, "max_tokens": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


def test_samples_and_logprobs(client, tales):
    prompt = TEMPLATES["bob-alice"].preamble + TEMPLATES["bob-alice"].render(HELLO[0]["content"])
    prompts = [{"prompt": prompt, "sample": i} for i in range(3)]
    alone = {r.index: r for r in tales.generate_many(prompts, 10, seed=8, stop=["\n\n"], logprobs=2)}
    body = {"messages": HELLO, "n": 3, "seed": 8, "max_tokens": 10, "logprobs": True, "top_logprobs": 2}
    choices = client.result(PATH, **body)["choices"]
    chunks = client.events(PATH, **body)
    for i, choice in enumerate(choices):
        entries = choice["logprobs"]["content"]
        assert choice["message"]["content"] == alone[i].text.lstrip()
        assert [entry["logprob"] for entry in entries] == [own.logprob for own in alone[i].generated.logprobs]
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode(errors="replace").startswith(alone[i].text)
        for entry, own in zip(entries, alone[i].generated.logprobs, strict=True):
            assert [other["logprob"] for other in entry["top_logprobs"]] == [logprob for _, logprob in own.top]
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == i]
        assert "".join(part["delta"].get("content", "") for part in mine) == choice["message"]["content"]
        assert [entry for part in mine if part["logprobs"] for entry in part["logprobs"]["content"]] == entries


def test_the_template_ends_replies(client, tales):
    [newline] = tales.tokenizer.encode("\n")
    body = {"messages": HELLO, "logit_bias": {str(newline): 1000}, "max_tokens": 5}
    [choice] = client.result(PATH, **body)["choices"]
    assert choice["message"]["content"] == ""
    assert choice["finish_reason"] == "stop"
    assert client.result(PATH, **body)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": messages("a", "b")}, "messages[2]"),
        ({"messages": [HELLO[0], HELLO[0]]}, "messages[1]"),
        ({"messages": messages(" ")}, "messages[0]"),
        ({"messages": [*messages("a", "b"), {"role": "system", "content": "x"}]}, "messages[2]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]},
            "messages.0.content.0.type",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_wrong_values(client, body, where):
    response = client.post(PATH, {"messages": HELLO, "max_tokens": 1} | body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"].startswith(where + ":")
    assert error["param"] == where.split(".")[0].split("[")[0]


def test_what_changes_nothing_is_accepted(client):
    body = {"tools": [], "tool_choice": "auto", "functions": None, "response_format": {"type": "text"}, "user": "me"}
    assert client.post(PATH, {"messages": HELLO, "max_tokens": 1} | body).status_code == 200
