"""Connections that do not wait for their clients for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # one of two classes, whichever is installed
    """A connection that ends when its client does not read what was sent, or does not finish the head of a request.

    A proxy in front of the server waits for slow clients itself. The body of a request is the application's matter,
    which can still answer.

    Attributes:
        seconds: the longest time without progress; `within` makes a subclass with another one.
    """

    seconds = 30.0

    @classmethod
    def within(cls, seconds: float) -> type[Connection]:
        """The class for connections with this limit."""
        return type(cls.__name__, (cls,), {"seconds": seconds})

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._deadlines: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begins to wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that `pause_writing` tells of everything that is not sent
        self._expect("head")

    def data_received(self, data: bytes) -> None:
        """Passes a part of a request on."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect("head")
        else:
            self._forget("head")

    def pause_writing(self) -> None:
        """Begins to wait until the client has read."""
        super().pause_writing()
        self._expect("reading")

    def resume_writing(self) -> None:
        """The client has read everything."""
        super().resume_writing()
        self._forget("reading")

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing any more."""
        for what in list(self._deadlines):
            self._forget(what)
        super().connection_lost(exc)

    def _expect(self, what: str) -> None:
        """Ends the connection unless that comes in time, with what is not sent: nobody waits for it to be read."""
        if what not in self._deadlines:
            self._deadlines[what] = self.loop.call_later(self.seconds, self.transport.abort)

    def _forget(self, what: str) -> None:
        if deadline := self._deadlines.pop(what, None):
            deadline.cancel()
