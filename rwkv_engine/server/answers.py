"""Runs the texts of a request, and answers with them: as a whole, or piece by piece."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar, cast

from fastapi import Request
from sse_starlette import EventSourceResponse
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from rwkv_engine.generation.asynchronous import arriving
from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.server.deadline import aborted_in_time, in_time, require_in_time
from rwkv_engine.server.errors import CLIENT_HAS_GONE, ApiError, Json, as_json, of_model
from rwkv_engine.server.schemas import Sampled
from rwkv_engine.server.service import Service
from rwkv_engine.server.states import Origin, state_of
from rwkv_engine.server.texts import ServedText

Result = TypeVar("Result")


class Answer(ABC):
    """How an endpoint presents the texts of a request.

    Attributes:
        body: the request.
        texts: what it asked for.
    """

    # The values of "object", and the beginning of ids.
    whole: str
    chunk: str
    prefix: str

    def __init__(self, service: Service, request: Request, body: Sampled, texts: Sequence[ServedText]):
        """Gives the answer the identity of its request."""
        self.body = body
        self.texts = texts
        self._about = {
            "id": f"{self.prefix}-{request.state.id}",
            "created": int(time.time()),
            "model": service.settings.name,
            "system_fingerprint": service.model.fingerprint,
        }

    async def prepare(self) -> None:
        """Called once a place is there for the texts, before they are begun."""
        return

    @abstractmethod
    def choice(self, text: ServedText) -> dict[str, Any]:
        """A text that has ended."""

    @abstractmethod
    def opening(self, text: ServedText) -> dict[str, Any] | None:
        """What is streamed of a text before its first piece."""

    @abstractmethod
    def piece(self, text: ServedText, piece: str, logprobs: list[Logprob]) -> dict[str, Any] | None:
        """A piece of a text, and the log-probabilities of the tokens that end in it."""

    @abstractmethod
    def ending(self, text: ServedText) -> dict[str, Any]:
        """What is streamed when a text has ended."""

    def object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The object around choices."""
        return {"object": kind, **self._about, "choices": choices}

    @property
    def usage(self) -> dict[str, Any]:
        """The numbers of tokens so far; a prompt counts once, whatever the number of its samples."""
        prompts = self.texts[:: self.body.n]
        n_prompt = sum(len(text.prompt) for text in prompts)
        n_new = sum(len(text.tokens) for text in self.texts)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
            "prompt_tokens_details": {"cached_tokens": sum(text.n_cached for text in prompts)},
        }


async def respond(service: Service, request: Request, answer: Answer, origin: Origin, held: ExitStack) -> Response:
    """Generates the texts of an answer; if the client disconnects, they end at the next step.

    Args:
        service: the server.
        request: what is answered.
        answer: presents the texts.
        origin: where they begin.
        held: what is held until the response has ended.

    Raises:
        ApiError: there is no place for them (429), the model failed (500), or the time was over (503).
    """
    with held.pop_all() as stack:
        stack.enter_context(service.places.hold(len(answer.texts)))
        stack.enter_context(request.state.client.hold(answer.texts))
        stack.enter_context(aborted_in_time(service, request, answer.texts))
        request.state.answer = answer  # for the log
        if answer.body.stream:
            return _Stream(_events(service, request, answer, origin), stack.pop_all())
        return await while_connected(request, _whole(service, request, answer, origin))


async def _whole(service: Service, request: Request, answer: Answer, origin: Origin) -> Response:
    try:
        await in_time(service, request, answer.prepare())
        async with aclosing(arriving(service.scheduler, answer.texts)) as news:
            async for item in news:
                require_in_time(service, item.request)
    except ApiError:
        raise
    except Exception as error:
        raise of_model(error, request.state.id) from error
    choices = [
        {**answer.choice(text), **await state_of(service, answer.body, text, origin.session)} for text in answer.texts
    ]
    return Json({**answer.object(answer.whole, choices), "usage": answer.usage})


class _Stream(EventSourceResponse):
    """Sends events, and gives back what they hold, also if they are never sent."""

    def __init__(self, events: AsyncIterator[bytes], held: ExitStack):
        super().__init__(events)
        del self.headers["connection"]  # which the server knows, and the response does not
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """Sends an event without a time limit, which would take a fifth of an event's time: `Connection` has one."""
        await send(message)


async def _events(service: Service, request: Request, answer: Answer, origin: Origin) -> AsyncIterator[bytes]:
    # What is around a choice is the same in all events.
    before = as_json(answer.object(answer.chunk, [])).removesuffix("]}")
    after = '],"usage":null}' if answer.body.includes_usage else "]}"

    def event(choice: dict[str, Any]) -> bytes:
        return _event(f"{before}{as_json(choice)}{after}")

    try:
        await in_time(service, request, answer.prepare())
        for text in answer.texts:
            if opening := answer.opening(text):
                yield event(opening)
        is_first = True
        async with aclosing(arriving(service.scheduler, answer.texts, pieces=True)) as news:
            async for item in news:
                if is_first and item.pieces:
                    service.metrics.first_piece.observe(time.perf_counter() - request.state.began)
                    is_first = False
                text = cast(ServedText, item.request)
                require_in_time(service, text)
                logprobs = text.read_logprobs(len(item.pieces), item.ended)
                if choice := answer.piece(text, "".join(item.pieces), logprobs):
                    yield event(choice)
                if item.ended:
                    yield event({**answer.ending(text), **await state_of(service, answer.body, text, origin.session)})
        if answer.body.includes_usage:
            yield _event(as_json({**answer.object(answer.chunk, []), "usage": answer.usage}))
        yield b"data: [DONE]\n\n"
    except ApiError as error:  # the status was sent, so it cannot tell
        yield _event(as_json(error.body))
    except Exception as error:
        yield _event(as_json(of_model(error, request.state.id).body))


def _event(content: str) -> bytes:
    return f"data: {content}\n\n".encode("ascii")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work, which is cancelled if the client disconnects.

    Raises:
        ApiError: the client has disconnected.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(CLIENT_HAS_GONE, "the client has disconnected")
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait({working, watching})


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
