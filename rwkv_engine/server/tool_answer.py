"""Replies that may call tools, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request

from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.server.call_reader import Call, CallReader
from rwkv_engine.server.chat_answer import ChatAnswer
from rwkv_engine.server.schemas import ChatRequest
from rwkv_engine.server.service import Service
from rwkv_engine.server.texts import ServedText
from rwkv_engine.server.tools import Calling


class ToolAnswer(ChatAnswer):
    """Replies whose calls are apart from their text."""

    def __init__(
        self, service: Service, request: Request, body: ChatRequest, texts: Sequence[ServedText], calling: Calling
    ):
        """`calling` is what the texts may call; the other arguments are those of `Answer`."""
        super().__init__(service, request, body, texts)
        self._readers = [CallReader(calling.names, calling.is_required) for _ in texts]

    def choice(self, text: ServedText) -> dict[str, Any]:
        """See `Answer.choice`."""
        content, calls = self._readers[text.index].read(text.text, is_end=True)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = [_written(call) for call in calls]
        return {"index": text.index, "message": message, "logprobs": None, "finish_reason": self._finish_reason(text)}

    def opening(self, text: ServedText) -> dict[str, Any] | None:
        """See `Answer.opening`."""
        return self._delta(text, {"role": "assistant", "content": None, "refusal": None})

    def piece(self, text: ServedText, piece: str, logprobs: list[Logprob]) -> dict[str, Any] | None:
        """See `Answer.piece`."""
        delta = self._read(text, piece)
        return self._delta(text, delta) if delta else None

    def ending(self, text: ServedText) -> dict[str, Any]:
        """See `Answer.ending`."""
        delta = self._read(text, "", is_end=True)
        return {**self._delta(text, delta), "finish_reason": self._finish_reason(text)}

    def _read(self, text: ServedText, piece: str, is_end: bool = False) -> dict[str, Any]:
        reader = self._readers[text.index]
        first = reader.n_calls
        content, calls = reader.read(piece, is_end)
        delta: dict[str, Any] = {"content": content} if content else {}
        if calls:
            delta["tool_calls"] = [{"index": i, **_written(call)} for i, call in enumerate(calls, first)]
        return delta

    def _finish_reason(self, text: ServedText) -> str | None:
        has_calls = self._readers[text.index].n_calls > 0
        return "tool_calls" if has_calls and text.finish_reason == "stop" else text.finish_reason


def _written(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
