"""The application: its routes, and what is around them."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from rwkv_engine._version import __version__
from rwkv_engine.server.chat import chat
from rwkv_engine.server.completions import completions
from rwkv_engine.server.document import ERRORS
from rwkv_engine.server.embeddings import embeddings
from rwkv_engine.server.errors import handle_errors
from rwkv_engine.server.gate import Gate
from rwkv_engine.server.observer import Observer
from rwkv_engine.server.page import page
from rwkv_engine.server.service import Service
from rwkv_engine.server.sessions import sessions
from rwkv_engine.server.status import status
from rwkv_engine.server.tokens import tokens


def create_app(service: Service) -> FastAPI:
    """The application of a service. It serves a model as soon as `Service.begin` was called.

    Its pages of documentation are left out, because they load scripts from elsewhere; `/openapi.json` is there.
    """
    app = FastAPI(
        title="rwkv_engine",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        redirect_slashes=False,
    )
    handle_errors(app)
    for routes in (completions, chat, embeddings, tokens, sessions, status):
        app.include_router(routes(service))
    if service.settings.page:
        app.include_router(page())
    # The one that is added last is the outermost.
    app.add_middleware(Gate, service=service)
    if service.settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Observer, service=service)
    return app
