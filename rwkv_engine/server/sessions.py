"""`/v1/sessions`: the sessions of a client."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import Response

from rwkv_engine.portable import Sessions
from rwkv_engine.server.errors import ApiError, Json
from rwkv_engine.server.service import Service
from rwkv_engine.server.states import session_errors
from rwkv_engine.server.threads import in_thread


def sessions(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    def kept() -> Sessions:
        if service.sessions is None:
            message = "this server keeps no sessions; it was started without --session-folder"
            raise ApiError(HTTPStatus.NOT_FOUND, message, code="no_sessions")
        return service.sessions

    @router.get("/v1/sessions")
    async def names(request: Request) -> Response:
        """The client's sessions."""
        found = await in_thread(kept().all, request.state.owner)
        seconds = service.settings.session_seconds
        data = [
            {
                "id": info.name,
                "object": "session",
                "bytes": info.n_bytes,
                "updated": int(info.updated),
                "expires": int(info.updated + seconds),
            }
            for info in found
        ]
        return Json({"object": "list", "data": data})

    @router.delete("/v1/sessions/{name}")
    async def delete(request: Request, name: str) -> Response:
        """Removes one of the client's sessions."""
        with session_errors():
            await in_thread(kept().delete, name, request.state.owner)
        return Json({"id": name, "object": "session.deleted", "deleted": True})

    return router
