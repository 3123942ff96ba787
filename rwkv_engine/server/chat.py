"""`/v1/chat/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rwkv_engine.generation.sampling import Logprob
from rwkv_engine.server import logprobs as forms
from rwkv_engine.server.answers import Answer, respond
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.schemas import ChatRequest, Message
from rwkv_engine.server.service import Service
from rwkv_engine.server.texts import ServedText, texts_of
from rwkv_engine.text.templates import Template

SYSTEM = ("system", "developer")


class ChatAnswer(Answer):
    """Replies as `/v1/chat/completions` returns them, without the blanks that they begin with."""

    whole = "chat.completion"
    chunk = "chat.completion.chunk"
    prefix = "chatcmpl"
    body: ChatRequest

    def __init__(self, service: Service, request: Request, body: ChatRequest, texts: Sequence[ServedText]):
        """The arguments are those of `Answer`."""
        super().__init__(service, request, body, texts)
        self._tokenizer = service.model.tokenizer
        self._shows_logprobs = bool(body.logprobs)
        # What continues a message may begin with a blank that belongs to it.
        self._has_begun = [bool(body.continue_final_message)] * len(texts)

    def choice(self, text: ServedText) -> dict[str, Any]:
        """See `Answer.choice`."""
        shown = text.text if self.body.continue_final_message else text.text.lstrip()
        message = {"role": "assistant", "content": shown, "refusal": None}
        logprobs = self._logprobs(text.generated.logprobs)
        return {"index": text.index, "message": message, "logprobs": logprobs, "finish_reason": text.finish_reason}

    def opening(self, text: ServedText) -> dict[str, Any] | None:
        """See `Answer.opening`."""
        return self._delta(text, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, text: ServedText, piece: str, logprobs: list[Logprob]) -> dict[str, Any] | None:
        """See `Answer.piece`."""
        shown = piece if self._has_begun[text.index] else piece.lstrip()
        self._has_begun[text.index] |= bool(shown)
        if not shown and not (logprobs and self._shows_logprobs):
            return None
        return self._delta(text, {"content": shown}, self._logprobs(logprobs))

    def ending(self, text: ServedText) -> dict[str, Any]:
        """See `Answer.ending`."""
        return {**self._delta(text, {}), "finish_reason": text.finish_reason}

    def _delta(self, text: ServedText, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": text.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _logprobs(self, logprobs: list[Logprob]) -> dict[str, Any] | None:
        return forms.of_chat(self._tokenizer, logprobs) if self._shows_logprobs else None


def chat(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def reply(request: Request, body: ChatRequest) -> Response:
        """Replies to the last message of a conversation."""
        service.check(body)
        formatted = begun_prompt if body.continue_final_message else prompt_of
        prompt = formatted(service.template, body.messages)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        texts = await asyncio.to_thread(texts_of, service, body, [prompt], service.template.stop, logprobs)
        return await respond(service, request, ChatAnswer(service, request, body, texts))

    return router


def begun_prompt(template: Template, messages: Sequence[Message]) -> str:
    """The conversation as the model reads it, up to the end of the last message, a reply that has begun.

    Raises:
        ApiError: the last message is not a reply, or those before it are wrong (400).
    """
    *before, begun = messages
    if begun.role != "assistant":
        raise _wrong(len(before), f"got one of role {begun.role}, expected assistant, whose message is continued")
    reply = begun.text.lstrip()
    return prompt_of(template, before) + (template.blank + reply if reply else "")


def prompt_of(template: Template, messages: Sequence[Message]) -> str:
    """The conversation as the model reads it.

    Raises:
        ApiError: the messages are not what the template has a place for (400).
    """
    n_system = next((i for i, message in enumerate(messages) if message.role not in SYSTEM), len(messages))
    introduction = "\n".join(message.text for message in messages[:n_system]) if n_system else None
    said = messages[n_system:]
    for i, message in enumerate(said):
        expected = ("user", "assistant")[i % 2]
        if message.role != expected:
            raise _wrong(n_system + i, f"got one of role {message.role}, expected {expected}: they take turns")
        if expected == "user" and not template.clean(message.text):
            raise _wrong(n_system + i, "is empty, expected some text")
    if len(said) % 2 == 0:
        raise _wrong(len(messages), "is missing: the last message must be the user's")
    texts = [message.text for message in said]
    turns = list(zip(texts[0:-1:2], texts[1::2], strict=True))
    return template.conversation(turns, texts[-1], introduction)


def _wrong(index: int, problem: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, f"messages[{index}]: {problem}", "messages")
