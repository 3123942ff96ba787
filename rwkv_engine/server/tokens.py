"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from rwkv_engine.server.errors import Json
from rwkv_engine.server.schemas import DetokenizeRequest, TokenizeRequest
from rwkv_engine.server.service import Service
from rwkv_engine.server.threads import in_thread


def tokens(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """The token ids of a text."""
        service.check(body)
        ids = await in_thread(service.model.tokenizer.encode, body.prompt)
        return Json({"tokens": ids, "count": len(ids)})

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        service.check(body)
        return Json({"prompt": await in_thread(service.model.tokenizer.decode, body.tokens)})

    return router
