"""An application runs for requests of other processes, and requests that begin alike have common keys."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_engine.server.forwarding import Forwarded, respond
from rwkv_engine.server.prefixes import prefixes_of

try:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    pytest.skip(f"{error.name} is not installed, which the extra serve has", allow_module_level=True)


def request(path, body=b"", query=b""):
    return Forwarded("POST", path, query, [(b"x-name", b"value")], body)


def test_an_application_sees_the_request_and_its_response_comes_back():
    async def echo(request: Request):
        body = (await request.body()).decode()
        return JSONResponse([body, request.headers["x-name"], dict(request.query_params)], 201)

    async def sent():
        app = Starlette(routes=[Route("/echo", echo, methods=["POST"])])
        return [message async for message in respond(app, request("/echo", b"hello", b"a=1"))]

    start, *bodies = asyncio.run(sent())
    assert start["status"] == 201
    assert json.loads(b"".join(body["body"] for body in bodies)) == ["hello", "value", {"a": "1"}]


def test_closing_ends_the_application_and_parts_come_before_the_end():
    ended = []

    async def parts():
        try:
            for i in range(1000):
                yield str(i)
                await asyncio.sleep(0.001)
        finally:
            ended.append(True)

    async def first():
        app = Starlette(routes=[Route("/", lambda _: StreamingResponse(parts()), methods=["POST"])])
        async with aclosing(respond(app, request("/"))) as messages:
            seen = [await anext(messages) for _ in range(3)]
        await asyncio.sleep(0.05)
        return seen

    assert [message.get("body") for message in asyncio.run(first())] == [None, b"0", b"1"]
    assert ended


def test_an_error_of_the_application_is_raised():
    async def failing(scope, receive, send):
        raise ValueError("broken")

    async def sent():
        return [message async for message in respond(failing, request("/"))]

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(sent())


def common(a, b, owners=("", "")):
    keys = [prefixes_of(json.dumps(body).encode(), owner) for body, owner in zip((a, b), owners, strict=True)]
    return sum(x == y for x, y in zip(*keys, strict=False)), *map(len, keys)


def test_conversations_and_texts_that_begin_alike_have_common_prefixes():
    turns = [{"role": "user", "content": str(i)} for i in range(4)]
    assert common({"messages": turns[:3]}, {"messages": turns, "seed": 3}) == (3, 3, 4)
    assert common({"messages": turns}, {"messages": [turns[1], *turns[1:]]}) == (0, 4, 4), "a key is of all before it"
    assert common({"prompt": "a" * 600}, {"prompt": "a" * 520 + "b"}) == (2, 3, 3)
    assert common({"prompt": [1] * 600}, {"prompt": [[1] * 520, [2]]}) == (2, 3, 3)
    assert common({"prompt": "a"}, {"prompt": ["a", "b"]}) == (1, 1, 1)
    assert common({"prompt": "a"}, {"prompt": "a"}, ("Bearer A", "Bearer B")) == (0, 1, 1)


@given(
    st.binary(max_size=50)
    | st.recursive(
        st.none() | st.text(max_size=5) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["prompt", "messages", "x"]), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_body_has_prefixes_or_none(body):
    assert len(prefixes_of(body)) <= 256


@pytest.mark.parametrize("begin", ['{"messages":[', '{"prompt":[1,', '{"messages":[{"a":'])
def test_a_body_of_any_depth_has_prefixes_or_none(begin):
    closing = "".join({"[": "]", "{": "}"}.get(character, "") for character in reversed(begin))
    for depth in range(800, 1010):  # around the interpreter's limit
        assert len(prefixes_of(f"{begin}{'[' * depth}{']' * depth}{closing}".encode())) <= 2
