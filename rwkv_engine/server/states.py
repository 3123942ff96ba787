"""Sealed states in requests and responses: a text goes on where one has ended, on any server that has the key."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import Any, NamedTuple

from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.core.state import State
from rwkv_engine.generation.continuing import state_after, state_within, unread_text
from rwkv_engine.generation.many import encode_prompt
from rwkv_engine.generation.text_request import TextRequest
from rwkv_engine.notices import log
from rwkv_engine.pipeline import RWKV
from rwkv_engine.portable import Session, SessionError, StateRefused
from rwkv_engine.portable.sealer import in_base64
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.schemas import Sampled
from rwkv_engine.server.service import Service
from rwkv_engine.server.threads import in_thread


class Origin(NamedTuple):
    """Where a request begins.

    Attributes:
        snapshot: where the text before it has ended; None if there is none.
        session: what is to be given the new state; None for nothing.
    """

    snapshot: Snapshot | None = None
    session: Session | None = None


async def origin_of(service: Service, body: Sampled, owner: str, held: ExitStack) -> Origin:
    """Where a request begins; the session that it names is in use until `held` is closed.

    Raises:
        ApiError: the state is not accepted (400, or 413 if it is too large), the session is in use (409), there is no
            room for another one (429), or this server has none (400).
    """
    lease = ExitStack()
    opening = asyncio.ensure_future(in_thread(_origin, service, body, owner, lease))
    try:
        origin = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda _: lease.close())  # the thread goes on, and may take the session only now
        raise
    held.enter_context(lease)
    return origin


def _origin(service: Service, body: Sampled, owner: str, lease: ExitStack) -> Origin:
    _require_supported(service, body)
    if body.session is not None and service.sessions:
        with session_errors():
            session = lease.enter_context(service.sessions.use(body.session, owner))
            return Origin(session.snapshot, session)
    if body.state is None or service.sealer is None:
        return Origin()
    try:
        return Origin(service.sealer.open(_decoded(body.state, service.sealer.most_bytes), owner))
    except StateRefused as refused:
        is_large = refused.code == "state_too_large"
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if is_large else HTTPStatus.BAD_REQUEST
        raise ApiError(status, str(refused), "state", refused.code) from None


def _require_supported(service: Service, body: Sampled) -> None:
    for name, option, is_there in (
        ("state", "--state-keys", service.sealer),
        ("return_state", "--state-keys", service.sealer),
        ("session", "--session-folder", service.sessions),
    ):
        if getattr(body, name) not in (None, False) and not is_there:
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"{name}: is not supported by this server, which was started without {option}; leave it out",
                name,
                "unsupported_parameter",
            )


def _decoded(text: str, most: int) -> bytes:
    if len(text) > in_base64(most):
        raise StateRefused(f"state: is too large, expected at most {in_base64(most)} characters", "state_too_large")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # a ValueError if it is not ASCII
        raise StateRefused("state: is not Base64, expected the text that a response had", "state_invalid") from None


def beginning(
    model: RWKV, prompt: str | Sequence[int], snapshot: Snapshot | None
) -> tuple[Sequence[int], State | None, Snapshot | None]:
    """The ids of a prompt, the state before them, and the snapshot if the same text goes on.

    Raises:
        RequestError: there is nothing to begin with.
    """
    if snapshot and not prompt:
        before, last = state_within(model.engine, snapshot)
        return last, before, snapshot
    ids = encode_prompt(model.tokenizer, prompt) if isinstance(prompt, str) else prompt
    if not snapshot:
        return ids, None, None
    if model.engine.model.steps_as_it_reads:  # then the end of the text may be read together with what follows
        return [*unread_text(model.tokenizer, snapshot), *ids], snapshot.state, None
    return ids, state_after(model.engine, model.tokenizer, snapshot), None


async def state_of(service: Service, body: Sampled, text: TextRequest, session: Session | None) -> dict[str, Any]:
    """What a choice has in addition: the sealed state of a text that has ended, if the request asked for it.

    Raises:
        ApiError: the session cannot be saved (500).
    """
    try:
        return await in_thread(_state_of, service, body, text, session)
    except OSError as error:
        log.error("a session cannot be saved: %s", error)
        message = "the session cannot be saved, and is what it was before; the server's log has the reason"
        raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message, code="session_not_saved") from error


def _state_of(service: Service, body: Sampled, text: TextRequest, session: Session | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if session:
        session.save(text.snapshot)
        found["session"] = {"id": session.name, "is_new": session.snapshot is None}
    if body.return_state and service.sealer:
        blob = service.sealer.seal(text.snapshot, text.owner, body.state_dtype or "float32")
        found["state"] = base64.b64encode(blob).decode()
    return found


@contextmanager
def session_errors() -> Iterator[None]:
    """Gives the errors of sessions the statuses and codes that clients see."""
    statuses = {
        "session_busy": HTTPStatus.CONFLICT,
        "session_limit_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
        "session_not_found": HTTPStatus.NOT_FOUND,
    }
    try:
        yield
    except SessionError as error:
        raise ApiError(statuses[error.code], str(error), "session", error.code) from None
    except StateRefused:
        message = (
            "session: its file is damaged, or the server has another model or other keys now; delete it, and send the"
            " whole text"
        )
        raise ApiError(HTTPStatus.CONFLICT, message, "session", "session_lost") from None
