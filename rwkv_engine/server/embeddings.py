"""`/v1/embeddings`."""

from __future__ import annotations

import base64
from http import HTTPStatus
from threading import Event

import torch
from fastapi import APIRouter, Request
from starlette.responses import Response
from torch import Tensor

from rwkv_engine.checks import require_ids, require_text
from rwkv_engine.embedding import dimension, embed
from rwkv_engine.errors import RequestError
from rwkv_engine.server.answers import while_connected
from rwkv_engine.server.clients import Client
from rwkv_engine.server.deadline import in_time
from rwkv_engine.server.errors import ApiError, Json, of_model
from rwkv_engine.server.schemas import EmbeddingRequest
from rwkv_engine.server.service import Service
from rwkv_engine.server.texts import require_short
from rwkv_engine.server.threads import in_thread


def embeddings(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def vectors_of(request: Request, body: EmbeddingRequest) -> Response:
        """Computes vectors of length 1, so that the dot product of two is their cosine similarity."""
        service.check(body)

        async def work() -> tuple[list[Tensor], Tensor]:
            async with service.alone:
                client.require_tokens()  # again, because those before it in the queue have paid only now
                has_ended = Event()
                ids = await in_thread(_ids, service, body)
                client.pay(sum(map(len, ids)))  # in advance: a client that leaves has paid for what was begun
                try:
                    return ids, await in_thread(_compute, service, ids, body.pooling, has_ended)
                except Exception as error:  # the texts are sound
                    raise of_model(error, request.state.id) from error
                finally:
                    has_ended.set()

        client: Client = request.state.client
        client.require_tokens()
        with service.places.hold(1), client.counted(1):
            ids, vectors = await in_time(service, request, while_connected(request, work()))
        as_text = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
                if as_text
                else vector.tolist(),
            }
            for i, vector in enumerate(vectors)
        ]
        n = sum(map(len, ids))
        service.metrics.prompt_tokens.inc(n)
        usage = {"prompt_tokens": n, "total_tokens": n}
        return Json({"object": "list", "data": data, "model": service.settings.name, "usage": usage})

    return router


def _compute(service: Service, ids: list[Tensor], pooling: str, has_ended: Event) -> Tensor:
    """The vectors (N, D) of texts; ends early, with an error, when nobody waits any more."""

    def progress(done: int, total: int) -> None:
        if has_ended.is_set():
            raise RequestError("nobody waits for these vectors any more")

    return embed(service.model.engine, ids, pooling, normalize=True, progress=progress)


def _ids(service: Service, body: EmbeddingRequest) -> list[Tensor]:
    """The token ids of the texts, of which there is at least one."""
    size = dimension(service.model.config, body.pooling)
    if body.dimensions not in (None, size):
        raise ApiError(
            HTTPStatus.BAD_REQUEST, f"dimensions: got {body.dimensions}, expected {size}, or leave it out", "dimensions"
        )
    given = body.input
    if isinstance(given, str):
        given = [given]
    if given and isinstance(given[0], int):
        given = [given]
    n_vocab = service.model.config.n_vocab
    ids = []
    for i, text in enumerate(given):
        if isinstance(text, str):
            require_text(f"input[{i}]", text)
            found = service.model.tokenizer.encode(text)
        else:
            found = require_ids(f"input[{i}]", text, n_vocab, "the vocabulary")
        if not found:
            raise ApiError(HTTPStatus.BAD_REQUEST, f"input[{i}]: is empty, expected at least one token", "input")
        require_short(service, found, "input")
        ids.append(torch.tensor(found, dtype=torch.int64))
    if not ids:
        raise ApiError(HTTPStatus.BAD_REQUEST, "input: is empty, expected at least one text", "input")
    return ids
