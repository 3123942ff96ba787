"""Sealed states over HTTP: texts and conversations that go on from them, and states that are refused."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import Client, begun

from rwkv_engine import RWKV
from rwkv_engine.chat import Chat
from rwkv_engine.portable import SealingKeys
from rwkv_engine.server.keys import Keys
from rwkv_engine.text.templates import TEMPLATES

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
OLD, NEW = b"o" * 32, b"n" * 32
PROMPT = "Once upon a time there was a king"


@pytest.fixture(scope="module", params=("cpu fp32", "cpu fp32i8"))
def client(request, talker):
    model = RWKV.from_pretrained(talker.source, request.param, tokenizer=talker.tokenizer.name)
    return Client(begun(model, state_keys=SealingKeys([NEW])))


@pytest.fixture(scope="module")
def keyed(tales):
    return Client(begun(tales, state_keys=SealingKeys([NEW, OLD]), keys=Keys(["one", "two"])))


def post(client, path=COMPLETIONS, key="one", **body):
    return client.post(path, body, authorization=f"Bearer {key}")


def state_of(client, key="one", **body):
    [choice] = post(client, key=key, prompt=PROMPT, max_tokens=2, return_state=True, **body).json()["choices"]
    return choice["state"]


def refusal(response):
    error = response.json()["error"]
    assert error["param"] == "state"
    return response.status_code, error["code"]


@pytest.mark.parametrize("stop", [["\n\n"], ["e k", "ing "], []], ids=str)
def test_a_text_goes_on_as_if_it_had_not_ended(client, stop):
    options = {"seed": 7, "temperature": 0.9, "stop": stop}
    whole = client.result(COMPLETIONS, prompt=PROMPT, max_tokens=30, **options)["choices"][0]
    body, text, end = {"prompt": PROMPT}, "", None
    for n in (1, 4, 2, 10, 13):
        events = client.events(COMPLETIONS, max_tokens=n, return_state=True, **body, **options)
        [choice] = client.result(COMPLETIONS, max_tokens=n, return_state=True, **body, **options)["choices"]
        assert "".join(event["choices"][0]["text"] for event in events) == choice["text"]
        assert [bool(event["choices"][0].get("state")) for event in events] == [False] * (len(events) - 1) + [True]
        text, end = text + choice["text"], choice["finish_reason"]
        if end == "stop":
            break
        last = events[-1]["choices"][0]["state"]
        body = {"prompt": "", "state": choice["state"] if n % 2 else last}
    if end == "length":  # what may begin a stop string or is a part of a character was left to the continuation
        text += client.result(COMPLETIONS, max_tokens=0, **body, **options)["choices"][0]["text"]
    assert (text, end) == (whole["text"], whole["finish_reason"])


def test_a_conversation_goes_on(client):
    model = client.service.model
    options = {"seed": 4, "temperature": 0.7}
    conversation = Chat(model, TEMPLATES["bob-alice"], max_new_tokens=60, **options)
    state, n_read = {}, []
    for message in ("Tell me of the sea.", "And of the fox?", "Why?"):
        expected = "".join(conversation.reply(message))
        said = [{"role": "user", "content": message}]
        result = client.result(CHAT, messages=said, max_tokens=60, return_state=True, **state, **options)
        [choice] = result["choices"]
        if choice["finish_reason"] == "length" and choice["message"]["content"] != expected:
            break  # a stop string may have begun
        assert choice["message"]["content"] == expected
        state = {"state": choice["state"]}
        n_read.append(result["usage"]["prompt_tokens"])
    assert len(n_read) >= 2
    assert n_read[1] < 20 < n_read[0], "only what is new is read"


def test_a_reply_that_was_cut_goes_on(client):
    said = [{"role": "user", "content": "Tell me of the sea."}]
    options = {"seed": 5, "temperature": 0.8}
    [whole] = client.result(CHAT, messages=said, max_tokens=20, **options)["choices"]
    [first] = client.result(CHAT, messages=said, max_tokens=8, return_state=True, **options)["choices"]
    body = {"state": first["state"], "max_tokens": 12, **options}
    [rest] = client.result(COMPLETIONS, prompt="", stop=["\n\n"], **body)["choices"]
    assert first["message"]["content"] + rest["text"] == whole["message"]["content"]
    [same] = client.result(CHAT, messages=[], **body)["choices"]
    assert same["message"]["content"] == rest["text"]


def test_a_reply_that_was_cut_between_words_keeps_the_blank(client):
    options = {"seed": 4, "temperature": 0.7, "return_state": True}
    said = [{"role": "user", "content": "Tell me of the sea."}]
    whole = client.result(CHAT, messages=said, max_tokens=8, **options)["choices"][0]["message"]["content"]
    for n in range(1, 7):
        [choice] = client.result(CHAT, messages=said, max_tokens=n, **options)["choices"]
        body = {"messages": [], "state": choice["state"], "max_tokens": 8 - n, **options}
        rest = client.result(CHAT, **body)["choices"][0]["message"]["content"]
        assert choice["message"]["content"] + rest == whole
        deltas = [event["choices"][0]["delta"].get("content", "") for event in client.events(CHAT, **body)]
        assert "".join(deltas) == rest


def test_what_a_state_cannot_give_is_refused(keyed):
    state = {"state": state_of(keyed), "max_tokens": 5}
    response = post(keyed, prompt=" and", echo=True, logprobs=1, **state)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "echo"
    assert post(keyed, prompt=" and", echo=True, **state).status_code == 200
    for form in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"choice": ["a"]}}):
        assert post(keyed, prompt=" and", **form, **state).status_code == 200
        for path, rest in ((COMPLETIONS, {"prompt": ""}), (CHAT, {"messages": []})):
            response = post(keyed, path, **rest, **form, **state)
            error = response.json()["error"]
            assert (response.status_code, error["param"], error["code"]) == (400, *form, "invalid_format")


def test_a_state_of_a_prompt_alone_has_branches(client):
    known = client.result(COMPLETIONS, prompt=PROMPT, max_tokens=0, return_state=True)
    assert known["usage"]["completion_tokens"] == 0
    state = known["choices"][0]["state"]
    more = [" who had", " without"]
    body = {"prompt": more, "max_tokens": 6, "seed": 3, "n": 2, "return_state": True}
    branches = client.result(COMPLETIONS, state=state, **body)["choices"]
    model = client.service.model
    _, before = model.forward(model.encode_prompt(PROMPT))
    prompts = [{"prompt": prompt, "sample": sample} for prompt in more for sample in range(2)]
    assert [branch["text"] for branch in branches] == model.generate(prompts, 6, before, seed=3)
    assert len({branch["state"] for branch in branches}) == 4
    nothing = client.post(COMPLETIONS, {"prompt": "", "state": state})
    assert nothing.status_code == 400
    assert "text to go on with" in nothing.json()["error"]["message"]


def test_16_bits(client):
    body = {"prompt": PROMPT, "max_tokens": 1, "return_state": True}
    results = [client.result(COMPLETIONS, state_dtype=dtype, **body) for dtype in ("float32", "float16")]
    full, half = (result["choices"][0] for result in results)
    assert len(half["state"]) < 0.6 * len(full["state"])
    assert client.result(COMPLETIONS, prompt=" and", state=half["state"], max_tokens=3)["choices"][0]["text"]
    alone = client.post(COMPLETIONS, {"prompt": PROMPT, "state_dtype": "float16"})
    assert alone.json()["error"]["message"] == "state_dtype: needs return_state"


def test_any_server_with_the_key_goes_on(tales, keyed):
    state = state_of(keyed)
    other = Client(begun(tales, state_keys=SealingKeys([NEW]), keys=Keys(["zero", "one"])))
    assert (
        post(other, prompt=" and", state=state, seed=1).json()["choices"]
        == (post(keyed, prompt=" and", state=state, seed=1).json()["choices"])
    )
    old = Client(begun(tales, state_keys=SealingKeys([OLD]), keys=Keys(["one"])))
    assert post(keyed, prompt=" and", state=state_of(old)).status_code == 200
    assert refusal(post(old, prompt=" and", state=state)) == (400, "state_invalid")


def test_states_of_others_are_refused(tales, keyed):
    state = state_of(keyed)
    for path, body in (
        (COMPLETIONS, {"prompt": " and"}),
        (COMPLETIONS, {"prompt": ""}),
        (CHAT, {"messages": [], "max_tokens": 1}),
    ):
        assert refusal(post(keyed, path, "two", state=state, **body)) == (400, "state_invalid")
        assert post(keyed, path, "one", state=state, **body).status_code == 200
    everyone = Client(begun(tales, state_keys=SealingKeys([NEW])))
    assert refusal(everyone.post(COMPLETIONS, {"prompt": " and", "state": state})) == (400, "state_invalid")


def test_states_expire(tales):
    client = Client(begun(tales, state_keys=SealingKeys([NEW]), state_seconds=-1))
    assert refusal(client.post(COMPLETIONS, {"prompt": "", "state": state_of(client)})) == (400, "state_expired")


def test_states_that_are_too_large(keyed):
    most = keyed.service.most_body_bytes - keyed.service.settings.most_body_bytes
    assert refusal(post(keyed, prompt="", state="A" * (most + 1))) == (413, "state_too_large")
    assert refusal(post(keyed, prompt="", state="A" * (most - 4))) == (400, "state_invalid")
    assert post(keyed, prompt="", state="A" * 2 * keyed.service.most_body_bytes).status_code == 413


def test_without_keys_of_states(tales):
    client = Client(begun(tales))
    for field, value in (("return_state", True), ("state", "AAAA"), ("state", "")):
        response = client.post(COMPLETIONS, {"prompt": "a", field: value})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "unsupported_parameter"
        assert response.json()["error"]["param"] == field
    assert client.post(COMPLETIONS, {"prompt": "a", "return_state": False, "max_tokens": 1}).status_code == 200


def test_a_system_message_in_the_middle(keyed):
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    response = post(keyed, CHAT, messages=said, state=state_of(keyed))
    assert response.status_code == 400
    assert "the state has the beginning" in response.json()["error"]["message"]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_states_get_a_clear_answer(keyed, sealed, data):
    at = data.draw(st.integers(0, len(sealed) - 1))
    part = data.draw(st.text(max_size=8) | st.text("AB+/=", max_size=8) | st.just(sealed[:40]))
    text = data.draw(st.sampled_from([sealed[:at] + part, sealed[:at] + part + sealed[at + len(part) :], part]))
    response = post(keyed, prompt="", state=text, max_tokens=1)
    try:
        same = base64.b64decode(text, validate=True) == base64.b64decode(sealed)  # the last digit has unused bits
    except ValueError:
        same = False
    if same:
        assert response.status_code == 200
    else:
        assert refusal(response) == (400, "state_invalid")
    assert not keyed.service.places.taken


@pytest.fixture(scope="module")
def sealed(keyed):
    return state_of(keyed)


def test_a_blob_says_nothing_in_clear(keyed):
    blob = base64.b64decode(state_of(keyed))
    assert json.dumps(PROMPT).encode()[1:6] not in blob
    assert keyed.service.model.engine.model.fingerprint.encode() not in blob
