"""A response of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.presence import while_connected

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # so that a proxy passes events on at once
PING = b": ping\n\n"  # a comment, which clients leave out
PING_SECONDS = 15.0


class EventStream(StreamingResponse):
    """Sends events as they come, until the client disconnects, and gives back what they hold, also if none is sent.

    An event is all that the server does for a token, so nothing is between its bytes and the connection. There is no
    time limit for sending one: `Connection` has it. Between events comments are sent, or proxies would end a connection
    whose text waits for its slot.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], held: ExitStack):
        """`events` are whole, each with its empty line; `held` is closed when they have ended."""
        super().__init__(events, headers=HEADERS)
        self._events, self._held = events, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        with self._held, suppress(ApiError):  # which says that the client has disconnected
            await while_connected(receive, self.stream_response(send))

    async def stream_response(self, send: Send) -> None:
        """See `StreamingResponse`."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pinging = asyncio.ensure_future(_ping(send))
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await send(_part(event))
        finally:
            pinging.cancel()
        await send(_part(b"", is_last=True))


def _part(body: bytes, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not is_last}


async def _ping(send: Send) -> None:
    while True:
        await asyncio.sleep(PING_SECONDS)
        await send(_part(PING))
