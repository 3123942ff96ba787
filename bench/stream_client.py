"""A client of many streams that takes little of the machine which it shares with the server."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence

# A client is woken when so many bytes have come, or the last ones. It stands for clients on other machines: woken for
# every event, it would take a third of the time that the server takes for it, on the server's cores.
ENOUGH = 2**16
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"


class Stream:
    """A streamed completion.

    Attributes:
        first: when its first event came, by `time.perf_counter`; 0 before.
        n_tokens: the number of generated tokens, once it has ended.
    """

    def __init__(self, port: int, body: Mapping[str, object]):
        """Sends the request to 127.0.0.1."""
        # Without the cache, which the library's texts do not have either.
        content = json.dumps({**body, "no_cache": True, "stream": True, "stream_options": {"include_usage": True}})
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(f"{HEAD}Content-Length: {len(content)}\r\n\r\n{content}".encode())
        self.first, self.n_tokens = 0.0, 0
        self._received: list[bytes] = []

    def receive(self) -> bool:
        """Takes what has come, and returns whether more will."""
        data = self.socket.recv(65536)
        if not self.first and b"data: {" in data:
            self.first = time.perf_counter()
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, ENOUGH)
        self._received.append(data)
        if not data:
            lines = b"".join(self._received).splitlines()
            events = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: {")]
            self.n_tokens = json.loads(events[-1])["usage"]["completion_tokens"]
        return bool(data)


def streamed(port: int, bodies: Sequence[Mapping[str, object]]) -> list[Stream]:
    """Streams that begin together, when all have ended."""
    streams = [Stream(port, body) for body in bodies]
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        while selector.get_map():
            for key, _ in selector.select():
                if not key.data.receive():
                    selector.unregister(key.fileobj)
                    key.data.socket.close()
    return streams
