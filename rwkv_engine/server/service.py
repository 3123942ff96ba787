"""What the parts of a server share: the model, its scheduler, and limits."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus

from rwkv_engine.checks import shown
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.notices import log
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.pipeline import RWKV
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.jinja_template import JinjaTemplate
from rwkv_engine.server.keys import Keys
from rwkv_engine.server.metrics import Metrics
from rwkv_engine.server.places import Places
from rwkv_engine.server.schemas import Body
from rwkv_engine.text.templates import Template, template_for

MOST_NAMES = 100  # of unknown fields that are remembered


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server behaves.

    Attributes:
        name: the model's name for clients.
        template: the prompt format of conversations; None for the one of the model's vocabulary.
        strict: whether unknown fields in a request are refused, instead of ignored with a warning.
        slots: the number of texts that run at a time.
        most_waiting: the number of texts that may wait for a slot; further ones are refused.
        most_prompt_tokens: the largest number of tokens in a prompt, or in a text to embed.
        most_new_tokens: the largest number of tokens that a request may ask for.
        most_body_bytes: the largest size of a request's body.
        request_seconds: the longest time from a request to the end of its response; None for no limit.
        client_seconds: the longest time to wait for a client, to send a request or to read what was sent.
        keys: the keys of clients; None serves everyone.
        origins: the origins of web pages that may use the server (CORS).
    """

    name: str
    template: Template | JinjaTemplate | None = None
    strict: bool = False
    slots: int = MOST_ROWS
    most_waiting: int = 64
    most_prompt_tokens: int = 16384
    most_new_tokens: int = 4096
    most_body_bytes: int = 2**20
    request_seconds: float | None = None
    client_seconds: float = 30.0
    keys: Keys | None = None
    origins: tuple[str, ...] = ()


class Service:
    """A server's state, which is used by its event loop only, except `begin`.

    Attributes:
        settings: how it behaves.
        places: for the texts that it takes on.
        metrics: what it counts.
        began: when it was created, in seconds since 1970.
        is_draining: whether it finishes what was begun, and refuses everything else.
        alone: held by what takes all cores beside the scheduler.
        in_flight: the number of requests that were begun and have not ended.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.places = Places(settings.slots + settings.most_waiting)
        self.metrics = Metrics(self.places)
        self.began = int(time.time())
        self.alone = asyncio.Lock()
        self.is_draining = False
        self.in_flight = 0
        self._running: tuple[RWKV, Scheduler, Template | JinjaTemplate] | None = None
        self._unknown: set[str] = set()

    def begin(self, model: RWKV) -> None:
        """Serves a model from now on; may be called in any thread.

        Raises:
            TokenizerError: the model has no tokenizer.
        """
        _ = model.tokenizer
        scheduler = Scheduler(model.engine.model, slots=self.settings.slots, chunk=model.engine.chunk)
        self._running = model, scheduler, self.settings.template or template_for(model.config.n_vocab)

    @property
    def is_ready(self) -> bool:
        """Whether it takes on requests."""
        return self._running is not None and not self.is_draining

    def require_ready(self) -> None:
        """Checks that it takes on requests.

        Raises:
            ApiError: it does not yet, or no longer (503).
        """
        if not self.is_ready:
            state = "is shutting down" if self.is_draining else "is loading the model"
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the server {state}; try again later",
                code="draining" if self.is_draining else "loading",
                headers={"Retry-After": "2"},
            )

    def _parts(self) -> tuple[RWKV, Scheduler, Template | JinjaTemplate]:
        assert self._running, "require_ready comes first"
        return self._running

    @property
    def model(self) -> RWKV:
        """The model."""
        return self._parts()[0]

    @property
    def scheduler(self) -> Scheduler:
        """Runs all texts of the server."""
        return self._parts()[1]

    @property
    def template(self) -> Template | JinjaTemplate:
        """The prompt format of conversations."""
        return self._parts()[2]

    def check(self, body: Body) -> None:
        """Checks what all requests have in common.

        Raises:
            ApiError: it asks for another model (404), or for what the server cannot do or does not know (400).
        """
        name = self.settings.name
        if body.model not in (None, name):
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"model: got {shown(body.model)}, expected {shown(name)}, the one model of this server",
                "model",
                "model_not_found",
            )
        body.require_supported()
        for field in body.unknown:
            if self.settings.strict:
                raise ApiError(
                    HTTPStatus.BAD_REQUEST,
                    f"{shown(field)}: there is no such field; leave it out",
                    field[:64],
                    "unknown_parameter",
                )
            if field not in self._unknown and len(self._unknown) < MOST_NAMES:
                self._unknown.add(field)
                log.warning("the field %s of a request is unknown, and is ignored from now on", shown(field))
