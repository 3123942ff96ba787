"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import Response

from rwkv_engine.server.answers import respond
from rwkv_engine.server.chat_answer import ChatAnswer, opening_of
from rwkv_engine.server.document import STREAM
from rwkv_engine.server.errors import ApiError
from rwkv_engine.server.jinja_template import JinjaTemplate
from rwkv_engine.server.schemas import ChatRequest, Message
from rwkv_engine.server.service import Service
from rwkv_engine.server.states import origin_of
from rwkv_engine.server.texts import texts_of
from rwkv_engine.server.threads import in_thread
from rwkv_engine.server.tool_answer import ToolAnswer
from rwkv_engine.server.tools import Calling, calling_of
from rwkv_engine.text.templates import Template

SYSTEM = ("system", "developer")


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
            # In a thread, because schemas, and a template of somebody else's, may take a while.
            calling = await in_thread(calling_of, service, body)
            prompts = [await in_thread(_prompt, service, body, is_rest, calling)]
            stop = () if calling.is_required else template.stop
            form = calling.format
            texts = await in_thread(texts_of, service, body, owner, origin, prompts, stop, logprobs, form=form)
            with_tools = ToolAnswer(service, request, body, texts, calling) if calling.names else None
            answer = with_tools or ChatAnswer(service, request, body, texts)
            return await respond(service, request, answer, origin, held)

    return router


def _prompt(service: Service, body: ChatRequest, is_rest: bool, calling: Calling) -> str:
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
        return template.prompt(messages, service.model.tokenizer, calling.shown)
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
