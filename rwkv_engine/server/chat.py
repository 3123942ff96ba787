"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rwkv_engine.generation.sampling import Logprob
from rwkv_engine.server import logprobs as forms
from rwkv_engine.server.answers import Answer, respond
from rwkv_engine.server.document import STREAM
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.formats import format_of
from rwkv_engine.server.jinja_template import JinjaTemplate
from rwkv_engine.server.schemas import ChatRequest, Message
from rwkv_engine.server.service import Service
from rwkv_engine.server.states import origin_of
from rwkv_engine.server.texts import ServedText, texts_of
from rwkv_engine.server.threads import in_thread
from rwkv_engine.text.reply_text import ReplyText
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
        self._opening = opening_of(service.template, body)
        self._shown = [self._reply_text(text) for text in texts]

    def choice(self, text: ServedText) -> dict[str, Any]:
        """See `Answer.choice`."""
        shown = self._reply_text(text).add(text.text)
        message = {"role": "assistant", "content": shown, "refusal": None}
        logprobs = self._logprobs(text.generated.logprobs)
        return {"index": text.index, "message": message, "logprobs": logprobs, "finish_reason": text.finish_reason}

    def opening(self, text: ServedText) -> dict[str, Any] | None:
        """See `Answer.opening`."""
        return self._delta(text, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, text: ServedText, piece: str, logprobs: list[Logprob]) -> dict[str, Any] | None:
        """See `Answer.piece`."""
        shown = self._shown[text.index].add(piece)
        if not shown and not (logprobs and self._shows_logprobs):
            return None
        return self._delta(text, {"content": shown}, self._logprobs(logprobs))

    def ending(self, text: ServedText) -> dict[str, Any]:
        """See `Answer.ending`."""
        return {**self._delta(text, {}), "finish_reason": text.finish_reason}

    def _reply_text(self, text: ServedText) -> ReplyText:
        # What continues a message, or has a format, may begin with a blank that belongs to it.
        is_verbatim = bool(self.body.continue_final_message) or text.goes_on or text.allowed is not None
        return ReplyText(self._opening, is_verbatim)

    def _delta(self, text: ServedText, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": text.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _logprobs(self, logprobs: list[Logprob]) -> dict[str, Any] | None:
        return forms.of_chat(self._tokenizer, logprobs) if self._shows_logprobs else None


def chat(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=STREAM)
    async def reply(request: Request, body: ChatRequest) -> Response:
        """Replies to the last message of a conversation."""
        service.check(body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        owner, template = request.state.owner, service.template
        with ExitStack() as held:
            origin = await origin_of(service, body, owner, held)
            is_rest = origin.snapshot is not None
            # In a thread, because a template of somebody else's may take a while.
            prompts = [await in_thread(_prompt, service, body, is_rest)]
            texts = await in_thread(texts_of, service, body, owner, origin, prompts, template.stop, logprobs)
            return await respond(service, request, ChatAnswer(service, request, body, texts), origin, held)

    return router


def opening_of(template: Template | JinjaTemplate, body: ChatRequest) -> str:
    """The beginning of the reply that the prompt has: the template's, except where something else begins the reply."""
    is_begun = body.continue_final_message or not body.messages
    if isinstance(template, JinjaTemplate) or is_begun or format_of(body.response_format, body.structured_outputs):
        return ""
    return template.opening


def _prompt(service: Service, body: ChatRequest, is_rest: bool) -> str:
    """The prompt of a request, in the template of the server.

    Raises:
        ApiError: the messages are wrong, or ask for what the template cannot do (400).
    """
    template, messages, is_begun = service.template, body.messages, bool(body.continue_final_message)
    if isinstance(template, JinjaTemplate):
        for name, is_given in (("state", is_rest), ("continue_final_message", is_begun)):
            if is_given:
                message = f"{name}: is not supported with this server's template, which formats whole conversations"
                raise ApiError(HTTPStatus.BAD_REQUEST, message, name, "unsupported_parameter")
        return template.prompt(messages, service.model.tokenizer)
    if is_rest and is_begun:
        message = "continue_final_message: is not possible with a state, which has the beginning of the message"
        raise ApiError(HTTPStatus.BAD_REQUEST, message, "continue_final_message", "unsupported_parameter")
    template = replace(template, opening=opening_of(template, body))
    return begun_prompt(template, messages) if is_begun else prompt_of(template, messages, is_rest)


def begun_prompt(template: Template, messages: Sequence[Message]) -> str:
    """The conversation as the model reads it, up to the end of the last message, a reply that has begun.

    Raises:
        ApiError: the last message is not a reply, or those before it are wrong (400).
    """
    if not messages or messages[-1].role != "assistant":
        got = f"got one of role {messages[-1].role}" if messages else "is missing"
        raise _wrong(max(len(messages) - 1, 0), f"{got}, expected assistant, whose message is continued")
    reply = messages[-1].text.lstrip()
    return prompt_of(template, messages[:-1]) + (template.blank + reply if reply else "")


def prompt_of(template: Template, messages: Sequence[Message], is_rest: bool = False) -> str:
    """The conversation as the model reads it, up to a reply.

    Args:
        template: its format.
        messages: the conversation.
        is_rest: whether they are only what is new after a state, which has the beginning.

    Raises:
        ApiError: the messages are not what the template has a place for (400).
    """
    if not (messages or is_rest):
        raise ApiError(HTTPStatus.BAD_REQUEST, "messages: got none, expected at least one of the user", "messages")
    n_system = next((i for i, message in enumerate(messages) if message.role not in SYSTEM), len(messages))
    introduction = "\n".join(message.text for message in messages[:n_system]) if n_system else None
    if is_rest:
        if introduction is not None:
            raise _wrong(0, "got a system message, expected only what is new: the state has the beginning")
        if not messages:
            return ""
        introduction = ""  # so that what is between turns comes first
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
