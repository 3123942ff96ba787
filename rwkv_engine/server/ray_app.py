"""Deploys the server on Ray Serve: a replica of the application for each model, and a front that all requests pass.

    serve run rwkv_engine.server.ray_app:app model=RWKV-4-Raven-1B5.pth strategy="cpu fp32i8" replicas=4 cpus=2

The front passes whole requests on, to the replica that has read the longest prefix of the prompt. Replicas run the same
application as `rwkv-engine serve`, so everything that it serves is served here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from rwkv_engine.notices import log
from rwkv_engine.pipeline import RWKV
from rwkv_engine.portable import SealingKeys
from rwkv_engine.portable.sealer import DAY
from rwkv_engine.server.app import create_app
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.forwarding import Forwarded, Message, respond
from rwkv_engine.server.keys import Keys
from rwkv_engine.server.observer import HEADER
from rwkv_engine.server.prefixes import prefixes_of
from rwkv_engine.server.ray_router import PrefixRouter
from rwkv_engine.server.service import Service, Settings
from rwkv_engine.text.templates import TEMPLATES

_TRIES = 3  # replicas that may die before a request is given up
# A replica refuses a request beyond its limits itself, with status 429; Ray Serve must pass on that many.
_SPARE = 16
_MOST_STATE = 64 * 2**20


class Args(BaseModel):
    """What can be given after `serve run rwkv_engine.server.ray_app:app`, as NAME=VALUE.

    The options that `rwkv-engine serve` has as well mean the same here.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = "tales"
    strategy: str = "cpu fp32"
    tokenizer: str | None = None
    name: str | None = None
    template: str | None = None
    keys: Path | None = None
    strict: bool = False
    slots: int = Field(16, ge=1)
    most_waiting: int = Field(64, ge=0)
    most_prompt_tokens: int = Field(16384, ge=1)
    most_new_tokens: int = Field(4096, ge=1)
    most_body_bytes: int = Field(2**20, ge=1)
    cache_bytes: int = Field(2**30, ge=0, description="Memory of a replica for states after prompts; 0 keeps none.")
    state_keys: Path | None = None
    state_seconds: float = Field(30 * DAY, ge=1)
    replicas: int = Field(1, ge=1, description="Replicas; the smallest number if `most_replicas` is given.")
    most_replicas: int | None = Field(None, ge=1, description="Up to this many, by the number of requests.")
    texts_per_replica: float = Field(12, gt=0, description="Requests of a replica beyond which there should be more.")
    cpus: float = Field(1, ge=0, description="CPUs of a replica, which are also its threads.")
    gpus: float = Field(0, ge=0, description="GPUs of a replica.")
    drain_seconds: float = Field(30, ge=0, description="How long a replica that is stopped may finish its requests.")

    @field_validator("template")
    @classmethod
    def _is_known(cls, got: str | None) -> str | None:
        if got is not None and got not in TEMPLATES:
            raise ValueError(f"expected one of {', '.join(TEMPLATES)}")
        return got

    def settings(self) -> Settings:
        """The settings of a replica's server."""
        return Settings(
            name=self.name or Path(self.model).name,
            template=TEMPLATES[self.template] if self.template else None,
            strict=self.strict,
            slots=self.slots,
            most_waiting=self.most_waiting,
            most_prompt_tokens=self.most_prompt_tokens,
            most_new_tokens=self.most_new_tokens,
            most_body_bytes=self.most_body_bytes,
            cache_bytes=self.cache_bytes,
            state_keys=SealingKeys.read(self.state_keys) if self.state_keys else None,
            state_seconds=self.state_seconds,
            keys=Keys.read(self.keys) if self.keys else None,
        )

    @property
    def most_bytes(self) -> int:
        """The largest body that the front passes on; a replica also knows how large a sealed state is."""
        return self.most_body_bytes + (_MOST_STATE if self.state_keys else 0)


class Replica:
    """Runs the application of one server."""

    def __init__(self, args: Args):
        """Loads the model, which takes as long as it takes: Ray Serve sends no request before."""
        torch.set_num_threads(max(1, int(args.cpus)))
        self._service = Service(args.settings())
        self._service.begin(RWKV.from_pretrained(args.model, args.strategy, args.tokenizer))
        self._app = create_app(self._service)

    async def respond(self, request: Forwarded) -> AsyncIterator[Message]:
        """The ASGI messages of the application's response."""
        async with aclosing(respond(self._app, request)) as messages:
            async for message in messages:
                yield message

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica where this fails."""
        self._service.require_ready()


class Front:
    """Passes requests on to replicas, and their responses back as they come."""

    def __init__(self, replicas: DeploymentHandle, most_body_bytes: int, keys: Path | None = None):
        """`replicas` run `Replica`; larger bodies than `most_body_bytes` are refused here, as are all without a key."""
        self._replicas = replicas.options(stream=True)
        self._most_body_bytes = most_body_bytes
        self._keys = Keys.read(keys) if keys else None

    async def __call__(self, request: Request) -> Response:
        """Responds to a request; one whose replica dies before it has begun to respond is given to another."""
        authorization = request.headers.get("authorization", "")
        received = bytearray()  # which grows in place: bytes would be copied with every part
        # Nothing is read without a key. The replica refuses that, or serves what needs none, such as its health.
        if not self._keys or self._keys.accept(authorization.encode("latin-1")):
            async for part in request.stream():
                received += part
                if len(received) > self._most_body_bytes:
                    message = f"the body is too large, expected at most {self._most_body_bytes} bytes"
                    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message).response()
        body = bytes(received)
        forwarded = Forwarded(
            request.method,
            request.scope["path"],
            request.scope["query_string"],
            [(name.lower(), value) for name, value in request.headers.raw],
            body,
            (request.client.host, request.client.port) if request.client else None,
            tuple(prefixes_of(body, authorization)),
        )
        for _ in range(_TRIES):
            messages = self._replicas.respond.remote(forwarded)
            try:
                start = await anext(aiter(messages))
            except RayActorError as error:
                log.warning("a replica has died before it responded, another one is asked: %s", type(error).__name__)
            except (BackPressureError, DeploymentUnavailableError):
                break
            except asyncio.CancelledError:
                messages.cancel()
                raise
            else:
                response = StreamingResponse(_bodies(messages), start["status"])
                response.raw_headers = [header for header in start["headers"] if header[0] != HEADER.encode()]
                return response
        message = "no replica can take the request now; try again"
        return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code="busy", headers={"Retry-After": "2"}).response()


async def _bodies(messages: Any) -> AsyncIterator[bytes]:
    """The parts of a body. A client that leaves ends the replica's work; a replica that dies ends the connection."""
    is_whole = False
    try:
        async for message in messages:
            if body := message.get("body"):
                yield body
        is_whole = True
    finally:
        if not is_whole:
            with suppress(Exception):
                messages.cancel()


def app(args: Args | Mapping[str, str]) -> serve.Application:
    """Builds the application from its arguments; the command `serve run` gives them as texts.

    Raises:
        ValueError: there is no such argument, or its value is wrong.
    """
    args = Args.model_validate(args)
    scaling: dict[str, Any] = {"num_replicas": args.replicas}
    if args.most_replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=args.replicas,
                initial_replicas=args.replicas,
                max_replicas=max(args.replicas, args.most_replicas),
                target_ongoing_requests=args.texts_per_replica,
            )
        }
    most = args.slots + args.most_waiting + _SPARE
    replica = serve.deployment(
        Replica,
        name="Replica",
        max_ongoing_requests=most,
        graceful_shutdown_timeout_s=args.drain_seconds,
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"most_ahead": max(1, args.slots // 2)}
        ),
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        **scaling,
    )
    front = serve.deployment(
        Front,
        name="Front",
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=args.drain_seconds,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(replica.bind(args), args.most_bytes, args.keys)
