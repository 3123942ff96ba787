"""Sealed states in requests and responses: a text goes on where one has ended, on any server that has the key."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from rwkv_engine.core.snapshot import Snapshot
from rwkv_engine.core.state import State
from rwkv_engine.generation.continuing import state_after, state_within, unread_text
from rwkv_engine.generation.many import encode_prompt
from rwkv_engine.generation.text_request import TextRequest
from rwkv_engine.pipeline import RWKV
from rwkv_engine.portable import StateRefused
from rwkv_engine.portable.sealer import in_base64
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.schemas import Sampled
from rwkv_engine.server.service import Service


def opened(service: Service, body: Sampled, owner: str) -> Snapshot | None:
    """Where a request begins; None if it begins with its prompt.

    Raises:
        ApiError: the state is not accepted (400, or 413 if it is too large), or this server has no states (400).
    """
    for name in ("state", "return_state"):
        if getattr(body, name) not in (None, False) and not service.sealer:
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"{name}: is not supported by this server, which was started without --state-keys; leave it out",
                name,
                "unsupported_parameter",
            )
    if body.state is None or service.sealer is None:
        return None
    try:
        return service.sealer.open(_decoded(body.state, service.sealer.most_bytes), owner)
    except StateRefused as refused:
        is_large = refused.code == "state_too_large"
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if is_large else HTTPStatus.BAD_REQUEST
        raise ApiError(status, str(refused), "state", refused.code) from None


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


async def state_of(service: Service, body: Sampled, text: TextRequest) -> dict[str, Any]:
    """What a choice has in addition, if the request asked for it: the sealed state of a text that has ended."""
    if not body.return_state or not service.sealer:
        return {}
    sealer, dtype = service.sealer, body.state_dtype or "float32"
    return {"state": await asyncio.to_thread(lambda: _encoded(sealer.seal(text.snapshot, text.owner, dtype)))}


def _encoded(blob: bytes) -> str:
    return base64.b64encode(blob).decode()
