"""What a server tells about itself: `/v1/models`, `/health`, `/ready` and `/metrics`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from rwkv_engine.checks import shown
from rwkv_engine.server.errors import ApiError, Json
from rwkv_engine.server.metrics import CONTENT_TYPE
from rwkv_engine.server.service import Service


def status(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    model: dict[str, Any] = {
        "id": service.settings.name,
        "object": "model",
        "created": service.began,
        "owned_by": "rwkv_engine",
    }

    def about() -> dict[str, Any]:
        """The model, with what the chat page tells of it."""
        limits = {name: getattr(service.settings, name) for name in ("most_prompt_tokens", "most_new_tokens")}
        return model | {"template": service.template.name} | limits

    @router.head("/v1/models", include_in_schema=False)
    @router.get("/v1/models")
    async def models() -> Response:
        """The models of the server, of which there is one."""
        return Json({"object": "list", "data": [about()]})

    @router.head("/v1/models/{name:path}", include_in_schema=False)
    @router.get("/v1/models/{name:path}")
    async def model_of(name: str) -> Response:
        """A model."""
        if name != service.settings.name:
            raise ApiError(
                HTTPStatus.NOT_FOUND, f"model: there is no {shown(name)} on this server", "model", "model_not_found"
            )
        return Json(about())

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> Response:
        """Whether the server runs."""
        return Json({"status": "ok"})

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready() -> Response:
        """Whether the server takes on requests: 503 while the model is loaded, and while it is shutting down."""
        service.require_ready()
        return Json({"status": "ready"})

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """The metrics in the format of Prometheus."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE)

    return router
