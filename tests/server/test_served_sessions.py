"""Sessions over HTTP: conversations whose states the server keeps, for the client that began them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest
from served import Client, begun, httpx, is_idle, wait_until

from rwkv_engine import RequestError
from rwkv_engine.chat import Chat
from rwkv_engine.portable import SealingKeys
from rwkv_engine.server.keys import Keys
from rwkv_engine.server.service import Service, Settings
from rwkv_engine.text.templates import TEMPLATES

COMPLETIONS, CHAT, SESSIONS = "/v1/completions", "/v1/chat/completions", "/v1/sessions"
SEALED = SealingKeys([b"n" * 32])


@pytest.fixture
def client(tales, tmp_path):
    service = begun(tales, state_keys=SEALED, session_folder=tmp_path, keys=Keys(["one", "two"]), most_sessions=2)
    yield Client(service)
    service.sessions.close()


def call(client, path=COMPLETIONS, key="one", **body):
    return client.post(path, body, authorization=f"Bearer {key}")


def delete(client, name, key="one"):
    return client.call("DELETE", f"{SESSIONS}/{name}", headers={"authorization": f"Bearer {key}"})


def names(client, key="one"):
    found = client.get(SESSIONS, authorization=f"Bearer {key}").json()
    assert found["object"] == "list"
    return [session["id"] for session in found["data"]]


def refusal(response):
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


def test_a_conversation_is_kept(client, tales):
    conversation = Chat(tales, TEMPLATES["bob-alice"], max_new_tokens=60, seed=4, temperature=0.7)
    for i, message in enumerate(("Tell me of the sea.", "And of the fox?")):
        expected = "".join(conversation.reply(message))
        said = [{"role": "user", "content": message}]
        body = {"messages": said, "max_tokens": 60, "seed": 4, "temperature": 0.7, "session": "sea"}
        [choice] = call(client, CHAT, **body).json()["choices"]
        assert choice["message"]["content"] == expected
        assert choice["session"] == {"id": "sea", "is_new": i == 0}
    assert names(client) == ["sea"]
    assert delete(client, "sea").json() == {"id": "sea", "object": "session.deleted", "deleted": True}
    assert names(client) == []


def test_streams_and_states(client):
    body = {"prompt": "The king", "max_tokens": 5, "seed": 1, "session": "a"}
    text = call(client, **body, stream=True).text
    assert '"session":{"id":"a","is_new":true}' in [line for line in text.splitlines() if line][-2]
    more = call(client, **{**body, "prompt": ""}, return_state=True).json()["choices"][0]
    whole = call(client, **{**body, "max_tokens": 10, "session": "b"}).json()["choices"][0]
    assert whole["text"].endswith(more["text"])
    parts = [
        call(client, prompt="", seed=1, max_tokens=5, **origin).json()["choices"][0]["text"]
        for origin in ({"state": more["state"]}, {"session": "a"}, {"session": "b"})
    ]
    assert len(set(parts)) == 1


def test_sessions_of_others(client):
    for key in ("one", "two"):
        [choice] = call(client, key=key, prompt="The king", max_tokens=1, session="a").json()["choices"]
        assert choice["session"]["is_new"], "another client's session of this name is another session"
    assert refusal(delete(client, "b", "two")) == (404, "session_not_found", "session")
    assert delete(client, "a", "two").status_code == 200
    assert (names(client, "one"), names(client, "two")) == (["a"], [])
    assert client.get(SESSIONS).status_code == 401


@pytest.mark.slow
def test_a_session_in_use(client, tales):
    body = {"prompt": "The king", "max_tokens": 3000, "logit_bias": {"0": -1000}, "session": "a"}
    slow = threading.Thread(target=call, args=[client], kwargs=body)
    slow.start()
    wait_until(lambda: client.service.places.taken)
    assert refusal(call(client, prompt="The king", session="a")) == (409, "session_busy", "session")
    assert refusal(delete(client, "a")) == (409, "session_busy", "session")
    assert call(client, key="two", prompt="The king", max_tokens=1, session="a").status_code == 200
    slow.join()
    assert call(client, prompt=" and", max_tokens=1, session="a").json()["choices"][0]["session"]["is_new"] is False


def test_what_is_refused(client):
    for body, expected in (
        ({"session": "../a"}, (400, None, "session")),
        ({"session": "a" * 65}, (400, None, "session")),
        ({"session": "a\n"}, (400, None, "session")),
        ({"session": "a", "n": 2}, (400, None, "session")),
        ({"session": "a", "prompt": ["a", "b"]}, (400, None, "session")),
        ({"session": "a", "state": "AAAA"}, (400, None, "session")),
        ({"session": "a", "temperature": -1}, (400, None, "temperature")),
    ):
        assert refusal(call(client, **{"prompt": "a", **body})) == expected
    for name in "ab":
        assert call(client, prompt="a", max_tokens=1, session=name).status_code == 200
    assert refusal(call(client, prompt="a", session="c")) == (429, "session_limit_exceeded", "session")
    assert not client.service.sessions._busy
    assert not client.service.places.taken


def test_a_failure_leaves_the_session_as_it_was(client, monkeypatch):
    assert call(client, prompt="The king", max_tokens=1, session="a").status_code == 200
    before = client.service.sessions._path("a", Keys.owner(b"Bearer one")).read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rwkv_engine.portable.sessions.os.fsync", fail)
    response = call(client, prompt=" and", max_tokens=1, session="a")
    assert refusal(response) == (500, "session_not_saved", None)
    assert "No space" not in response.text
    streamed = call(client, prompt=" and", max_tokens=1, session="a", stream=True).text
    assert "session_not_saved" in [line for line in streamed.splitlines() if line][-1]
    assert "[DONE]" not in streamed
    monkeypatch.undo()
    path = client.service.sessions._path("a", Keys.owner(b"Bearer one"))
    assert path.read_bytes() == before
    path.write_bytes(before[:-1])
    assert refusal(call(client, prompt=" and", session="a")) == (409, "session_lost", "session")
    assert delete(client, "a").status_code == 200


def test_sessions_outlive_the_server(client, tales, tmp_path):
    assert call(client, prompt="The king", max_tokens=1, session="a").status_code == 200
    client.service.sessions.close()
    later = begun(tales, state_keys=SEALED, session_folder=tmp_path, keys=Keys(["one"]))
    [choice] = call(Client(later), prompt=" and", max_tokens=1, session="a").json()["choices"]
    assert choice["session"]["is_new"] is False
    client.service.sessions = later.sessions


def test_log_probabilities_of_a_prompt_after_a_session_are_refused(client):
    body = {"prompt": "The king", "max_tokens": 2, "session": "a", "echo": True, "logprobs": 1}
    assert call(client, **body).status_code == 200  # it is new: nothing is before the prompt
    assert refusal(call(client, **body)) == (400, "unsupported_parameter", "echo")
    assert call(client, **{**body, "logprobs": None}).status_code == 200


def test_without_sessions(tales, tmp_path):
    client = Client(begun(tales, state_keys=SEALED))
    assert refusal(client.post(COMPLETIONS, {"prompt": "a", "session": "a"})) == (
        400,
        "unsupported_parameter",
        "session",
    )
    assert client.get(SESSIONS).status_code == 404
    assert client.call("DELETE", f"{SESSIONS}/a").status_code == 404
    with pytest.raises(RequestError, match="give state_keys too"):
        Service(Settings(name="tales", session_folder=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_session(client, stream):
    assert call(client, prompt="The king", max_tokens=1, session="a").status_code == 200
    path = client.service.sessions._path("a", Keys.owner(b"Bearer one"))
    before = path.read_bytes()
    body = {"prompt": " and", "max_tokens": 3000, "logit_bias": {"0": -1000}, "session": "a", "stream": stream}

    async def leave():
        headers = {"authorization": "Bearer one"}
        transport = httpx.ASGITransport(client._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            for turns, seconds in enumerate((*[0] * 12, 0.0005, 0.001, 0.002, 0.004, 0.02, 0.1)):
                asking = asyncio.ensure_future(http.post(COMPLETIONS, json=body, headers=headers))
                for _ in range(turns):  # of the event loop, so that it leaves at each await of the beginning
                    await asyncio.sleep(0)
                await asyncio.sleep(seconds)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):  # a stream may end in time without an error
                    await asking
                for _ in range(1000):
                    if not client.service.sessions._busy and is_idle(client.service):
                        break
                    await asyncio.sleep(0.01)
                assert not client.service.sessions._busy

    asyncio.run(leave())
    assert path.read_bytes() == before


def test_a_client_that_leaves_while_its_session_is_opened(client, monkeypatch):
    sessions = client.service.sessions
    use = sessions.use

    @contextlib.contextmanager
    def slowly(*arguments):
        time.sleep(0.1)
        with use(*arguments) as session:
            yield session

    monkeypatch.setattr(sessions, "use", slowly)

    async def leave():
        headers = {"authorization": "Bearer one"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(client._app), base_url="http://server") as http:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(http.post(COMPLETIONS, json={"session": "a"}, headers=headers), 0.03)
            await asyncio.sleep(0.3)

    asyncio.run(leave())
    assert not sessions._busy
