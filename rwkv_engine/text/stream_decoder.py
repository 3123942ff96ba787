"""Decodes a stream of bytes to complete characters, up to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StreamDecoder:
    """Decodes UTF-8 piece by piece.

    Bytes that may be a part of an incomplete character, or the beginning of a stop string, are held back until more
    bytes decide it.

    Attributes:
        data: all bytes so far.
        released: the number of bytes that have been decoded to text.
        stopped: whether a stop string was found; the text ends before it, at `released`.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self.data = bytearray()
        self.released = 0
        self.stopped = False
        self._stop = [text.encode() for text in stop]
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoded = 0  # bytes passed to _utf8, which holds back an incomplete character

    def push(self, data: bytes) -> str:
        """Adds bytes and returns the text that they complete, which may be empty."""
        searched = len(self.data)
        self.data += data
        found = [self.data.find(stop, max(self._decoded, searched - len(stop) + 1)) for stop in self._stop]
        if cuts := [position for position in found if position >= 0]:
            self.stopped = True
            return self._release(min(cuts), final=True)
        return self._release(len(self.data) - self._held())

    def finish(self) -> str:
        """The rest of the text at the end of the stream; U+FFFD stands for an incomplete character."""
        return "" if self.stopped else self._release(len(self.data), final=True)

    def _held(self) -> int:
        """The length of the longest suffix of the data that is a prefix of a stop string."""
        tail = self.data[self._decoded :]
        return max((_overlap(tail, stop) for stop in self._stop), default=0)

    def _release(self, end: int, final: bool = False) -> str:
        text = self._utf8.decode(bytes(self.data[self._decoded : end]), final)
        self._decoded = end
        self.released = end - (0 if final else len(self._utf8.getstate()[0]))
        return text


def _overlap(tail: bytearray, stop: bytes) -> int:
    """The length of the longest suffix of the data that is a prefix of the stop string, but not all of it.

    Only places with its first byte are compared: stop strings may be long and many, and this runs for every token.
    """
    at = max(0, len(tail) - len(stop) + 1)
    while (at := tail.find(stop[:1], at)) >= 0:
        if stop.startswith(tail[at:]):
            return len(tail) - at
        at += 1
    return 0
