"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.server import logprobs as forms
from rwkv_engine.server.answers import Answer, respond
from rwkv_engine.server.document import STREAM
from rwkv_engine.server.prompt_logprobs import PromptLogprobs
from rwkv_engine.server.schemas import CompletionRequest
from rwkv_engine.server.service import Service
from rwkv_engine.server.states import origin_of
from rwkv_engine.server.texts import ServedText, texts_of
from rwkv_engine.server.threads import in_thread

DEFAULT_TOKENS = 16  # OpenAI's


class CompletionAnswer(Answer):
    """Texts as `/v1/completions` returns them."""

    whole = chunk = "text_completion"
    prefix = "cmpl"

    def __init__(
        self,
        service: Service,
        request: Request,
        body: CompletionRequest,
        texts: Sequence[ServedText],
        prompts: Sequence[str | list[int]],
    ):
        """The prompts are those of the request."""
        super().__init__(service, request, body, texts)
        self._tokenizer = service.model.tokenizer
        self._shows_logprobs = body.logprobs is not None
        self._echoes = [
            prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)
            for prompt in (prompts if body.echo else ())
        ]
        shown = texts[:: body.n] if body.echo and body.logprobs is not None else ()
        self._of_prompts = PromptLogprobs(service, shown, body.logprobs or 0)
        self._prompt_logprobs: list[list[Logprob]] = []  # of each prompt, if they are shown
        self._offsets = [forms.Offsets() for _ in texts]

    async def prepare(self) -> None:
        """See `Answer.prepare`."""
        self._prompt_logprobs = await self._of_prompts.read()

    def choice(self, text: ServedText) -> dict[str, Any]:
        """See `Answer.choice`."""
        logprobs = [*self._echoed_logprobs(text), *text.generated.logprobs]
        shown = self._choice(text, self._echo(text) + text.text, logprobs)
        return {**shown, "finish_reason": text.finish_reason}

    def opening(self, text: ServedText) -> dict[str, Any] | None:
        """See `Answer.opening`."""
        echo = self._echo(text)
        return self._choice(text, echo, self._echoed_logprobs(text)) if self._echoes else None

    def piece(self, text: ServedText, piece: str, logprobs: list[Logprob]) -> dict[str, Any] | None:
        """See `Answer.piece`."""
        return self._choice(text, piece, logprobs) if piece or logprobs else None

    def ending(self, text: ServedText) -> dict[str, Any]:
        """See `Answer.ending`."""
        return {**self._choice(text, "", []), "finish_reason": text.finish_reason}

    def _echo(self, text: ServedText) -> str:
        return self._echoes[text.index // self.body.n] if self._echoes else ""

    def _echoed_logprobs(self, text: ServedText) -> list[Logprob]:
        return self._prompt_logprobs[text.index // self.body.n] if self._prompt_logprobs else []

    def _choice(self, text: ServedText, shown: str, logprobs: list[Logprob]) -> dict[str, Any]:
        offsets = self._offsets[text.index]
        form = forms.of_completion(self._tokenizer, logprobs, offsets) if self._shows_logprobs else None
        return {"index": text.index, "text": shown, "logprobs": form, "finish_reason": None}


def completions(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions", responses=STREAM)
    async def complete(request: Request, body: CompletionRequest) -> Response:
        """Continues texts."""
        service.check(body)
        prompts = _prompts(body)
        owner = request.state.owner
        with ExitStack() as held:
            origin = await origin_of(service, body, owner, held)
            # In a thread, because it takes a while to encode a long prompt.
            texts = await in_thread(
                texts_of,
                service,
                body,
                owner,
                origin,
                prompts,
                logprobs=body.logprobs,
                default_tokens=DEFAULT_TOKENS,
            )
            answer = CompletionAnswer(service, request, body, texts, prompts)
            return await respond(service, request, answer, origin, held)

    return router


def _prompts(body: CompletionRequest) -> Sequence[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return cast(Sequence[str | list[int]], [prompt])
    return cast(Sequence[str | list[int]], prompt)
