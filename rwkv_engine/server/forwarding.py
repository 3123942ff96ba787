"""Runs an ASGI application for a request that arrived in another process, and returns what it sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Application = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True)
class Forwarded:
    """A request with its whole body.

    Attributes:
        method, path, query: the request line; the query without its question mark.
        headers: names, in small letters, and values.
        body: all of it.
        client: the address and port that it came from.
        prefixes: the keys of its prompt's prefixes, see `prefixes_of`.
    """

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    client: tuple[str, int] | None = None
    prefixes: tuple[bytes, ...] = ()

    @property
    def scope(self) -> dict[str, Any]:
        """The connection scope of ASGI."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": list(self.headers),
            "client": self.client,
            "server": None,
        }


async def respond(application: Application, request: Forwarded) -> AsyncGenerator[Message, None]:
    """The messages that an application sends for a request, as they come.

    Closing the iterator, or cancelling the task that reads it, is to the application a client that disconnects.

    Raises:
        Exception: what the application raised.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=16)
    gone = asyncio.Event()
    bodies = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await application(request.scope, receive, messages.put)
        finally:
            await messages.put(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await running
    finally:
        gone.set()
        running.cancel()
        with suppress(BaseException):
            await running
