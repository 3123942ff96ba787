"""The longest time that a request may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, TypeVar

import anyio
from fastapi import Request

from rwkv_engine.generation.text_request import TextRequest
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.service import Service

Result = TypeVar("Result")


@contextmanager
def aborted_in_time(service: Service, request: Request, texts: Sequence[TextRequest]) -> Iterator[None]:
    """In this block, texts are aborted when the time of their request is over."""
    if (left := _left(service, request)) is None:
        yield
        return

    def abort() -> None:
        for text in texts:
            service.scheduler.abort(text)

    timer = asyncio.get_running_loop().call_later(left, abort)
    try:
        yield
    finally:
        timer.cancel()


def require_in_time(service: Service, text: TextRequest) -> None:
    """Checks that a text was not aborted.

    A text that is cut off by a clock is not what its request describes, so it is an error and no finish reason.

    Raises:
        ApiError: it was (503).
    """
    if text.finish_reason == "aborted":
        raise _too_late(service)


async def in_time(service: Service, request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work, which is cancelled when the time of its request is over.

    Raises:
        ApiError: it is (503).
    """
    try:
        with anyio.fail_after(_left(service, request)):
            return await work
    except TimeoutError:
        raise _too_late(service) from None


def _left(service: Service, request: Request) -> float | None:
    seconds = service.settings.request_seconds
    return None if seconds is None else max(0.0, seconds - (time.perf_counter() - request.state.began))


def _too_late(service: Service) -> ApiError:
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"the request was not done in {service.settings.request_seconds:g} seconds; ask for fewer tokens, or try again"
        " when the server is less busy",
        code="timeout",
    )
