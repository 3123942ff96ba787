"""Replies of a conversation, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request

from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.server import logprobs as forms
from rwkv_engine.server.answers import Answer
from rwkv_engine.server.formats import format_of
from rwkv_engine.server.jinja_template import JinjaTemplate
from rwkv_engine.server.schemas import ChatRequest
from rwkv_engine.server.service import Service
from rwkv_engine.server.texts import ServedText
from rwkv_engine.text.reply_text import ReplyText
from rwkv_engine.text.templates import Template


def opening_of(template: Template | JinjaTemplate, body: ChatRequest) -> str:
    """The beginning of the reply that the prompt has: the template's, except where something else begins the reply."""
    is_begun = body.continue_final_message or not body.messages
    if isinstance(template, JinjaTemplate) or is_begun or format_of(body.response_format, body.structured_outputs):
        return ""
    return template.opening


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
