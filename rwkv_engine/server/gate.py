"""Refuses requests before any of their content is looked at."""

from __future__ import annotations

import time
from http import HTTPStatus
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rwkv_engine.checks import shown
from rwkv_engine.server.clients import Client
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.keys import Keys
from rwkv_engine.server.page import is_page
from rwkv_engine.server.service import Service

# For programs that watch the server, which have no key; they learn nothing else from them.
OPEN = ("/health", "/ready")
ALWAYS = (*OPEN, "/metrics")


class Gate:
    """Lets a request pass if it has a key and a body that is not too large, and if the server is ready.

    Who reaches a server is not known where it has no keys. A web page of any site could: its owner lets the site's name
    mean this machine's address, and the browser takes the server for a part of the site (DNS rebinding). The browser
    then addresses the server by that name.
    """

    def __init__(self, app: ASGIApp, service: Service):
        """`app` gets what passes."""
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with an error."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            client = self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            return await error.response()(scope, receive, send)
        authorization = Headers(scope=scope).get("authorization", "").encode("latin-1")
        owner = Keys.owner(authorization) if self._service.settings.keys else ""
        scope.setdefault("state", {}).update(client=client, owner=owner)
        await self._app(scope, self._limited(receive), send)

    def _check(self, path: str, headers: Headers) -> Client:
        service = self._service
        keys, client = service.settings.keys, None
        if (hosts := service.settings.hosts) is not None and (name := _host_name(headers.get("host", ""))) not in hosts:
            raise ApiError(
                HTTPStatus.FORBIDDEN,
                f"the host {shown(name)} is not expected; the server's option --allowed-host allows it",
                code="host_not_allowed",
            )
        if keys:
            client = keys.accept(headers.get("authorization", "").encode("latin-1"))
        is_open = path in OPEN or (service.settings.page and is_page(path))
        if keys and not is_open and not client:
            raise ApiError(
                HTTPStatus.UNAUTHORIZED,
                "no valid API key was given, expected the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not is_open and path not in ALWAYS:
            service.require_ready()
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > service.most_body_bytes:
            raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large())
        return client or Client()

    def _limited(self, receive: Receive) -> Receive:
        n_bytes, is_whole = 0, False
        until = time.monotonic() + self._service.settings.client_seconds

        async def limited() -> Message:
            nonlocal n_bytes, is_whole
            if is_whole:  # what comes now is that the client disconnects
                return await receive()
            try:
                with anyio.fail_after(until - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive in time", {"Connection": "close"}
                ) from None
            n_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if n_bytes > self._service.most_body_bytes:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large())
            return message

        return limited

    def _too_large(self) -> str:
        return f"the body is too large, expected at most {self._service.most_body_bytes} bytes"


def _host_name(host: str) -> str:
    """The name or address in the header Host, without a port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # a bracket of an IPv6 address is missing
        return ""
