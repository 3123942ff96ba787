"""Texts for asyncio: the event loop is never blocked, because a thread of its own performs the steps.

Pieces are passed to the loop as they come and are kept until they are read: a slow reader neither loses any nor stops
other texts, and `max_new_tokens` bounds what is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import overload

from typing_extensions import Unpack

from rwkv_engine.core.state import State
from rwkv_engine.generation.background import News
from rwkv_engine.generation.inbox import inbox_of
from rwkv_engine.generation.many import AHEAD, Prompt, request_of, requests_of
from rwkv_engine.generation.params import TextOptions
from rwkv_engine.generation.scheduler import Scheduler, scheduler_of
from rwkv_engine.generation.text_generator import TextGenerator
from rwkv_engine.generation.text_request import TextRequest


async def arriving(
    scheduler: Scheduler, requests: Iterable[TextRequest], pieces: bool = False
) -> AsyncGenerator[News, None]:
    """Runs requests, and yields the news of each one when it has ended; with `pieces` also those of its pieces.

    However the generator ends, by an error, by `aclose` or because the task is cancelled, requests that have not ended
    are aborted, and their slots are free at the next step.

    Raises:
        RequestError: a request does not fit the model, too many are waiting, or the model failed.
    """
    loop, source = asyncio.get_running_loop(), iter(requests)
    news, live = asyncio.Queue[News](), set[TextRequest]()
    inbox = inbox_of(loop)
    try:
        while True:
            while len(live) < AHEAD and (request := next(source, None)):
                request.is_watched = pieces
                scheduler.add(request)
                live.add(request)
                scheduler.background.watch(request, lambda item: inbox.put(news, item), pieces, scheduler.perform)
            if not live:
                return
            item = await news.get()
            if item.request.error:
                raise item.request.error  # while it counts as live: if the thread failed, it has not ended by itself
            if item.ended:
                live.remove(item.request)
            yield item
    finally:
        for request in live:
            scheduler.abort(request)


class AsyncTextStream(AsyncIterator[str]):
    """Yields pieces of one text; none ends inside a character or contains a part of a stop string.

    The text is generated without waiting for its reader, from the first piece that is asked for. To end it early, call
    `aclose`, cancel the task, or drop the stream.

    Attributes:
        request: its `text`, `finish_reason` and `generated`, which has `tokens` and `logprobs`; they may be ahead of
            the pieces that were read.
    """

    def __init__(self, scheduler: Scheduler, request: TextRequest):
        self.request = request
        self._news = arriving(scheduler, [request], pieces=True)
        self._pieces: list[str] = []  # last one first

    async def __anext__(self) -> str:
        while not self._pieces:
            self._pieces = list(reversed((await self._news.__anext__()).pieces))
        return self._pieces.pop()

    async def aclose(self) -> None:
        """Ends the text; nothing happens if it has ended."""
        self._pieces.clear()
        await self._news.aclose()


class AsyncTextGenerator(TextGenerator):
    """The methods of `RWKV` that continue texts for asyncio; arguments are those of the methods without an a.

    Texts of several event loops, and of threads that wait for theirs, share each pass over the weights.
    """

    def astream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        state: State | None = None,
        sample: int = 0,
        **options: Unpack[TextOptions],
    ) -> AsyncTextStream:
        """Continues a text: `async for piece in model.astream(...)`. Arguments and errors are those of `stream`."""
        request = request_of(self.tokenizer, 0, prompt, max_new_tokens, state, sample, options)
        return AsyncTextStream(scheduler_of(self.engine), request)

    @overload
    async def agenerate(  # type: ignore[overload-overlap]  # a string is an iterable of strings, but one text
        self,
        prompt: str,
        max_new_tokens: int = ...,
        state: State | None = ...,
        **options: Unpack[TextOptions],
    ) -> str: ...

    @overload
    async def agenerate(
        self,
        prompt: Iterable[Prompt],
        max_new_tokens: int = ...,
        state: State | None = ...,
        **options: Unpack[TextOptions],
    ) -> list[str]: ...

    async def agenerate(
        self,
        prompt: str | Iterable[Prompt],
        max_new_tokens: int = 128,
        state: State | None = None,
        **options: Unpack[TextOptions],
    ) -> str | list[str]:
        """The continuation of a text; or those of several texts, in order. Arguments and errors as for `generate`."""
        if isinstance(prompt, (str, bytes)) or not isinstance(prompt, Iterable):
            stream = self.astream(prompt, max_new_tokens, state, **options)  # which refuses what is not text
            async for _ in stream:
                pass
            return stream.request.text
        requests = list(requests_of(self.tokenizer, prompt, max_new_tokens, state, options))
        async for _ in arriving(scheduler_of(self.engine), requests):
            pass
        return [request.text for request in requests]

    async def agenerate_many(
        self,
        prompts: Iterable[Prompt],
        max_new_tokens: int = 128,
        state: State | None = None,
        **options: Unpack[TextOptions],
    ) -> AsyncGenerator[TextRequest, None]:
        """Continues many texts together, and yields each result when it ends. See `generate_many`."""
        requests = requests_of(self.tokenizer, prompts, max_new_tokens, state, options)
        async for item in arriving(scheduler_of(self.engine), requests):
            yield item.request
