"""What the parts of a server share: the model, its scheduler, and limits."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from rwkv_engine.caching import StateCache
from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.scheduler import Scheduler
from rwkv_engine.notices import log
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.pipeline import RWKV
from rwkv_engine.portable import Sealer, SealingKeys, Sessions
from rwkv_engine.portable.sealer import DAY, in_base64
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
        cache_bytes: the memory for states after prompts, from which later prompts continue; 0 for none.
        cache_folder: where these states are kept in files too, so that they outlive the process; None for nowhere.
        cache_file_bytes: the largest size of all files of that folder.
        state_keys: seal the states that clients ask for; None for a server that gives none away.
        state_seconds: how long these can be opened.
        session_folder: where sessions are kept, which needs `state_keys`; None for a server that keeps none.
        session_seconds: how long a session is kept after it was used last.
        session_bytes: the size of all sessions at which no further ones are begun.
        most_sessions: the largest number of sessions of a key, or of all clients without keys.
        request_seconds: the longest time from a request to the end of its response; None for no limit.
        client_seconds: the longest time to wait for a client, to send a request or to read what was sent.
        keys: the keys of clients; None serves everyone.
        hosts: the names by which requests may address the server; None for any.
        origins: the origins of web pages that may use the server (CORS).
        page: whether the chat page is at `/`.
    """

    name: str
    template: Template | JinjaTemplate | None = None
    strict: bool = False
    slots: int = MOST_ROWS
    most_waiting: int = 64
    most_prompt_tokens: int = 16384
    most_new_tokens: int = 4096
    most_body_bytes: int = 2**20
    cache_bytes: int = 2**30
    cache_folder: Path | None = None
    cache_file_bytes: int = 10 * 2**30
    state_keys: SealingKeys | None = None
    state_seconds: float = 30 * DAY
    session_folder: Path | None = None
    session_seconds: float = 30 * DAY
    session_bytes: int = 10 * 2**30
    most_sessions: int = 1000
    request_seconds: float | None = None
    client_seconds: float = 30.0
    keys: Keys | None = None
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    page: bool = True

    def new_cache(self) -> StateCache | None:
        """The cache that these settings describe."""
        if self.cache_bytes or self.cache_folder:
            return StateCache(self.cache_bytes, self.cache_folder, self.cache_file_bytes)
        return None


class Service:
    """A server's state, which is used by its event loop only, except `begin`.

    Raises:
        RequestError: the settings contradict each other.

    Attributes:
        settings: how it behaves.
        places: for the texts that it takes on.
        cache: keeps the states after prompts; None for none.
        sealer: seals and opens the states of clients; None for none.
        sessions: keeps the states of clients; None for none.
        metrics: what it counts.
        began: when it was created, in seconds since 1970.
        is_draining: whether it finishes what was begun, and refuses everything else.
        alone: held by what takes all cores beside the scheduler.
        in_flight: the number of requests that were begun and have not ended.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.places = Places(settings.slots + settings.most_waiting)
        self.cache = settings.new_cache()
        self.metrics = Metrics(self.places, self.cache)
        self.sealer: Sealer | None = None
        self.sessions: Sessions | None = None
        if settings.session_folder and not settings.state_keys:
            raise RequestError("session_folder: sessions are sealed; give state_keys too (--state-keys FILE)")
        for origin in settings.origins:
            if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
                raise RequestError(
                    f"origin: got {shown(origin)}, expected one such as https://example.com, with no path"
                )
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
            RequestError: a folder cannot be used.
        """
        tokenizer = model.tokenizer
        if keys := self.settings.state_keys:
            seconds = self.settings.state_seconds
            self.sealer = Sealer(keys, model.config, model.fingerprint, tokenizer, seconds)
            self.sessions = self._new_sessions(keys, model)
        engine = model.engine
        scheduler = Scheduler(engine.model, slots=self.settings.slots, chunk=engine.chunk, cache=self.cache)
        template = self.settings.template or template_for(model.config.n_vocab, model.config.version)
        self._running = model, scheduler, template

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

    def _new_sessions(self, keys: SealingKeys, model: RWKV) -> Sessions | None:
        settings = self.settings
        if not settings.session_folder:
            return None
        seconds = settings.session_seconds
        sealer = Sealer(keys, model.config, model.fingerprint, model.tokenizer, seconds)
        return Sessions(settings.session_folder, sealer, seconds, settings.most_sessions, settings.session_bytes)

    @property
    def most_body_bytes(self) -> int:
        """The largest size of a request's body: that of the settings, and a state in addition."""
        return self.settings.most_body_bytes + (in_base64(self.sealer.most_bytes) if self.sealer else 0)

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
