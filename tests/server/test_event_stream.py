"""Streamed responses: comments while nothing comes, the end when a client leaves, and the bytes of events."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack, suppress

import pytest
from served import Client, Service, Settings

from rwkv_engine.server.answers import _Stream
from rwkv_engine.server.errors import as_json


class Connection:
    """The other end of a response, which reads so many messages: what was sent, and a way to leave."""

    def __init__(self, most=1000):
        self.sent, self.is_gone, self.most = [], asyncio.Event(), most

    async def send(self, message):
        self.sent.append(message)
        if len(self.sent) > self.most:
            await asyncio.sleep(60)

    async def receive(self):
        await self.is_gone.wait()
        return {"type": "http.disconnect"}


class Events:
    """A source of events that notes what happened to it."""

    def __init__(self, *events):
        self.events, self.notes = events, []

    async def stream(self):
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, float):
                    await asyncio.sleep(event)
                else:
                    yield event
        finally:
            self.notes.append("closed")


async def respond(events, connection):
    held = ExitStack()
    held.callback(events.notes.append, "given back")
    await _Stream(events.stream(), held)({"type": "http", "method": "POST"}, connection.receive, connection.send)


def bodies(connection):
    start, *parts, last = connection.sent
    assert start["type"] == "http.response.start"
    assert last == {"type": "http.response.body", "body": b"", "more_body": False}
    assert all(part["more_body"] for part in parts)
    return [part["body"] for part in parts]


def test_events_are_sent_as_they_are():
    async def run():
        events, connection = Events(b"data: 1\n\n", b"data: 2\n\n"), Connection()
        await respond(events, connection)
        assert bodies(connection) == [b"data: 1\n\n", b"data: 2\n\n"]
        assert events.notes == ["closed", "given back"]
        headers = dict(connection.sent[0]["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert headers[b"cache-control"] == b"no-store"
        assert b"content-length" not in headers
        assert b"connection" not in headers

    asyncio.run(run())


def test_comments_are_sent_while_nothing_comes(monkeypatch):
    monkeypatch.setattr(_Stream, "DEFAULT_PING_INTERVAL", 0.01)

    async def run():
        connection = Connection()
        await respond(Events(0.1, b"data: 1\n\n", 0.1), connection)
        await asyncio.sleep(0.05)
        sent = bodies(connection)  # after the last part there is nothing
        at = sent.index(b"data: 1\n\n")
        assert at >= 1
        pings = sent[:at] + sent[at + 1 :]
        assert at < len(pings)
        assert all(ping.startswith(b":") and ping.endswith(b"\r\n\r\n") for ping in pings)

    asyncio.run(run())


@pytest.mark.parametrize("most", [1000, 1], ids=["waits for an event", "does not read"])
def test_a_client_that_leaves_ends_the_events(most):
    async def run():
        events, connection = Events(b"data: 1\n\n", 60.0, b"data: 2\n\n"), Connection(most)
        responding = asyncio.ensure_future(respond(events, connection))
        while len(connection.sent) < 2:
            await asyncio.sleep(0)
        connection.is_gone.set()
        await asyncio.wait_for(responding, 10)
        assert events.notes == ["closed", "given back"]
        assert len(connection.sent) == 2

    asyncio.run(run())


def test_a_response_that_is_cancelled_gives_back():
    async def run():
        events, connection = Events(60.0), Connection()
        responding = asyncio.ensure_future(respond(events, connection))
        while not connection.sent:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        responding.cancel()
        with suppress(asyncio.CancelledError):
            await responding
        assert events.notes == ["closed", "given back"]

    asyncio.run(run())


def test_an_error_cuts_the_response_off():
    async def run():
        events, connection = Events(b"data: 1\n\n", ValueError("broken")), Connection()
        with pytest.raises(ValueError, match="broken"):
            await respond(events, connection)
        assert connection.sent[-1]["more_body"]
        assert events.notes == ["closed", "given back"]

    asyncio.run(run())


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_events_are_the_json_of_their_objects(tales, path, usage):
    name = 'a "name"]}, ü'
    service = Service(Settings(name=name))
    service.begin(tales)
    given = (
        {"prompt": "The", "logprobs": 1}
        if path == "/v1/completions"
        else {"messages": [{"role": "user", "content": "Hello"}]}
    )
    body = {**given, "max_tokens": 4, "seed": 1, "stream": True, "stream_options": {"include_usage": usage}}
    lines = Client(service).post(path, body).text.split("\n\n")
    assert lines.pop() == ""
    assert lines.pop() == "data: [DONE]"
    assert len(lines) >= 4
    contents = [line.removeprefix("data: ") for line in lines]
    chunks = [json.loads(content) for content in contents]
    assert [as_json(chunk) for chunk in chunks] == contents
    assert {chunk["model"] for chunk in chunks} == {name}
    assert all(("usage" in chunk) == usage for chunk in chunks)
    assert all((chunk["usage"] is None) == bool(chunk["choices"]) for chunk in chunks if usage)
