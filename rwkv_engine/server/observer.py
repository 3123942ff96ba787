"""Gives each request an id, counts it, and logs it without anything of its content."""

from __future__ import annotations

import re
import time
import uuid
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rwkv_engine.notices import log
from rwkv_engine.server.answers import Answer
from rwkv_engine.server.errors import CLIENT_HAS_GONE, ApiError
from rwkv_engine.server.service import Service

HEADER = "x-request-id"


class Observer:
    """Is around all other parts of the application, so that no request escapes it."""

    def __init__(self, app: ASGIApp, service: Service):
        """`app` handles the requests."""
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; an error that nobody has handled is logged, and answered with status 500."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})
        given = Headers(scope=scope).get(HEADER, "")
        state["id"] = given if re.fullmatch("[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex
        state["began"] = time.perf_counter()
        status = CLIENT_HAS_GONE  # unless a response is begun

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = state["id"]
            await send(message)

        self._service.in_flight += 1
        try:
            await self._app(scope, receive, noting)
        except Exception:
            log.exception("a request failed", extra={"fields": {"id": state["id"]}})
            if status != CLIENT_HAS_GONE:
                raise  # the server closes the connection, so that the client sees that the response is not whole
            error = ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log has the reason")
            await error.response()(scope, receive, noting)
        finally:
            self._service.in_flight -= 1
            self._record(scope, status)

    def _record(self, scope: Scope, status: int) -> None:
        state, metrics = scope["state"], self._service.metrics
        seconds = time.perf_counter() - state["began"]
        route = getattr(scope.get("route"), "path", "other")  # not the path, of which a client can make any number
        fields = {"id": state["id"], "method": scope["method"], "route": route, "status": status}
        if (client := state.get("client")) and client.name:
            fields["client"] = client.name
        answer: Answer | None = state.get("answer")
        if answer:
            usage = answer.usage
            usage |= usage.pop("prompt_tokens_details")
            metrics.prompt_tokens.inc(usage["prompt_tokens"])
            metrics.generated_tokens.inc(usage["completion_tokens"])
            ends = sorted({str(text.finish_reason or "aborted") for text in answer.texts})
            fields |= {**usage, "texts": len(answer.texts), "ends": ends}
        metrics.requests.labels(route, status).inc()
        metrics.seconds.labels(route).observe(seconds)
        log.info("request", extra={"fields": fields | {"seconds": round(seconds, 4)}})
