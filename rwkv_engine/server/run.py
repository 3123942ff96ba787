"""Runs the application until a signal ends it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from rwkv_engine.errors import RequestError
from rwkv_engine.notices import log
from rwkv_engine.pipeline import RWKV
from rwkv_engine.server.app import create_app
from rwkv_engine.server.connections import Connection
from rwkv_engine.server.keys import Keys
from rwkv_engine.server.service import Service


class Server(uvicorn.Server):
    """Finishes what was begun when a signal comes, and refuses new requests in the meantime; a second one ends it.

    Attributes:
        failure: why the model could not be loaded, if it could not.
    """

    def __init__(self, service: Service, drain_seconds: float):
        """`drain_seconds` is the time after which it ends in any case."""
        config = uvicorn.Config(
            create_app(service),
            http=Connection.within(service.settings.client_seconds),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.failure: BaseException | None = None
        self._service = service
        self._drain_seconds = drain_seconds
        self._draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to drain."""
        if self._draining_since is not None:
            self.should_exit = self.force_exit = True
            return
        self._draining_since = time.monotonic()
        self._service.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; returns whether to end."""
        if self._draining_since is not None:
            waited = time.monotonic() - self._draining_since
            self.should_exit |= not self._service.in_flight or waited > self._drain_seconds
        return await super().on_tick(counter)

    def load(self, load: Callable[[], RWKV]) -> None:
        """Loads the model, and serves it from then on; if that fails, the server ends."""
        try:
            self._service.begin(load())
        except BaseException as error:  # of a thread, where nobody else would see it
            self.failure = error
            self.should_exit = True
        else:
            log.info("ready, template %s", self._service.template.name)


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for connections; port 0 is any that is free.

    Raises:
        RequestError: that address is not this machine's, or is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        waiting = socket.create_server(address[:2], family=family, backlog=2048)
        # Connections inherit it. asyncio sets it only where a socket names its protocol, which this one does not; and
        # without it, a response in two parts waits 40 ms for the client's acknowledgement of the first.
        waiting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        return waiting
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        told = getattr(error, "strerror", None) or error  # of an address in use, with the address once more
        reason = os.strerror(number) if number and number > 0 else told
        raise RequestError(f"{host}:{port}: cannot listen here: {reason}; choose another --host or --port") from error


@contextmanager
def reloading(keys: Keys | None) -> Iterator[None]:
    """In this block, SIGHUP reads the file of keys again. If that fails, they stay as they are."""

    def reload(number: int, frame: FrameType | None) -> None:
        assert keys
        try:
            keys.reload()
        except RequestError as error:
            log.error("the API keys stay as they were: %s", error)
        else:
            log.info("the API keys were read again")

    if keys is None or not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, reload)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def serve(service: Service, load: Callable[[], RWKV], host: str, port: int, drain_seconds: float) -> None:
    """Serves a model, which is loaded meanwhile, until a signal ends the server.

    Raises:
        RwkvError: the address cannot be used, or the model cannot be loaded.
    """
    waiting = listen(host, port)
    server = Server(service, drain_seconds)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{waiting.getsockname()[1]}/v1"
    log.info("loading %s, to serve it at %s", service.settings.name, address)
    loading = threading.Thread(target=server.load, args=[load], name="rwkv_engine-load", daemon=True)
    loading.start()
    with waiting, reloading(service.settings.keys):
        server.run(sockets=[waiting])
    if server.failure:
        raise server.failure
    log.info("ended")
