"""Streamers: objects that turn the tokens of `generate(streamer=...)` into text while they are generated."""

from __future__ import annotations

from queue import Queue
from typing import Any

from torch import Tensor

from rwkv_engine.auto.rwkv_tokenizer import RwkvTokenizer
from rwkv_engine.errors import RequestError
from rwkv_engine.text import StreamDecoder


class TextStreamer:
    """Prints one text while it is generated, in whole characters.

    Override `on_finalized_text` to send the text elsewhere.
    """

    def __init__(self, tokenizer: RwkvTokenizer, skip_prompt: bool = False, **decode_kwargs: Any):
        """Args:
        tokenizer: decodes the ids.
        skip_prompt: leave out the prompt, which is the first value that `put` takes.
        **decode_kwargs: as for `RwkvTokenizer.decode`, such as `skip_special_tokens=True`.
        """
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._begin()

    def _begin(self) -> None:
        self._is_prompt = True
        self._decoder = StreamDecoder()

    def put(self, value: Tensor) -> None:
        """Takes the prompt (1, T), then each generated token (1,).

        Raises:
            RequestError: the batch has more than one text.
        """
        if value.ndim > 1 and len(value) > 1:
            raise RequestError(f"{type(self).__name__}: got {len(value)} texts, expected one; generate them one by one")
        skipped, self._is_prompt = self._is_prompt and self.skip_prompt, False
        if not skipped:
            data = b"".join(
                self.tokenizer.token_bytes(token, **self.decode_kwargs) for token in value.flatten().tolist()
            )
            self.on_finalized_text(self._decoder.push(data))

    def end(self) -> None:
        """Ends the text; the streamer can then be used for another one."""
        rest = self._decoder.finish()
        self._begin()
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Receives each piece of text, which may be empty; `stream_end` marks the last one."""
        print(text, end="\n" if stream_end else "", flush=True)


class TextIteratorStreamer(TextStreamer):
    """Yields the pieces of one text, while `generate` runs in another thread."""

    def __init__(
        self, tokenizer: RwkvTokenizer, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ):
        """`timeout`: seconds to wait for a piece before `queue.Empty` is raised; None waits for ever."""
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self._pieces: Queue[str | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queues a piece for the reader."""
        self._pieces.put(text)
        if stream_end:
            self._pieces.put(None)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        piece = self._pieces.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece
