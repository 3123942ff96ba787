"""Parses the text of a strategy into segments, and prints them: `cuda fp16i8 *10 -> cpu fp32`.

strategy = segment ( "->" segment )*
segment  = device dtype [ "*" N [ "+" ] ]
device   = "cpu" | "cuda" [ ":" N ] | "mps" | "dml"
dtype    = ( "fp32" | "fp16" | "bf16" ) [ "i8" | "i4" ]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rwkv_engine.errors import StrategyError

DEVICE = r"cpu|cuda(:\d+)?|mps|dml"
ARROW = " -> "


@dataclass(frozen=True)
class Segment:
    """One segment of a strategy.

    Attributes:
        device: "cpu", "cuda", "cuda:N", "mps" or "dml".
        dtype: "fp32", "fp16" or "bf16".
        weight_format: "dense", "i8" or "i4".
        count: its number of layers; None for a share of the remaining ones.
        streams: whether it also takes all remaining layers and streams them to its device.
        column: the index of its first character in the text, for error messages.
    """

    device: str
    dtype: str
    weight_format: str = "dense"
    count: int | None = None
    streams: bool = False
    column: int = field(default=0, compare=False)

    def __str__(self) -> str:
        suffix = "" if self.weight_format == "dense" else self.weight_format
        count = "" if self.count is None else f" *{self.count}{'+' if self.streams else ''}"
        return f"{self.device} {self.dtype}{suffix}{count}"


def strategy_error(text: str, column: int, width: int, message: str) -> StrategyError:
    """An error that shows the text below its message, and `width` carets below the text, from `column` on."""
    return StrategyError(f"strategy: {message}\n  {text}\n  {' ' * column}{'^' * width}")


def parse_segments(text: str) -> tuple[Segment, ...]:
    """The segments of a strategy's text.

    Raises:
        StrategyError: the text is malformed; carets in the message mark the position.
    """
    return tuple(_Parser(text).strategy())


def print_segments(segments: Sequence[Segment]) -> tuple[str, tuple[Segment, ...]]:
    """The normal form of a strategy's text, and the segments with their columns in it."""
    placed, column = [], 0
    for segment in segments:
        placed.append(replace(segment, column=column))
        column += len(str(segment)) + len(ARROW)
    return ARROW.join(map(str, placed)), tuple(placed)


def is_device(text: str) -> bool:
    """Whether this is the name of a device in the grammar; the device need not be available."""
    return re.fullmatch(DEVICE, text) is not None


class _Parser:
    """A recursive-descent parser of the text's tokens."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = [(m.group(), m.start()) for m in re.finditer(r"->|[*+]|[^\s*+]+?(?=->|[\s*+]|$)", text)]
        self.at = 0

    def strategy(self) -> list[Segment]:
        segments = [self.segment()]
        while self.at < len(self.tokens):
            word, _ = self.tokens[self.at]
            if word != "->":
                raise self.error("expected '->' before the next segment")
            self.at += 1
            segments.append(self.segment())
        streaming = [s for s in segments if s.streams]
        if len(streaming) > 1:
            raise strategy_error(self.text, streaming[1].column, 1, "only one segment can stream ('+')")
        return segments

    def segment(self) -> Segment:
        column = self.column()
        device = self.word(DEVICE, "a device: cpu, cuda, cuda:N")
        dtype = self.word(
            r"(fp32|fp16|bf16)(i8|i4)?", "a precision: fp32, fp16 or bf16, optionally followed by i8 or i4"
        )
        count, streams = None, False
        if self.accept("*"):
            count = int(self.word(r"\d+", "a number of layers"))
            streams = self.accept("+")
            if streams and device == "cpu":
                self.at -= 1
                raise self.error("layers are streamed to a GPU; the CPU reads main memory, so leave the + out")
            if count == 0 and not streams:
                self.at -= 1
                raise self.error("*0 places nothing; leave the segment out, or write *0+ to stream all of it")
        return Segment(device, dtype[:4], dtype[4:] or "dense", count, streams, column)

    def word(self, pattern: str, expected: str) -> str:
        if self.at < len(self.tokens) and re.fullmatch(pattern, self.tokens[self.at][0]):
            self.at += 1
            return self.tokens[self.at - 1][0]
        raise self.error(f"expected {expected}")

    def accept(self, sign: str) -> bool:
        found = self.at < len(self.tokens) and self.tokens[self.at][0] == sign
        self.at += found
        return found

    def column(self) -> int:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else len(self.text)

    def error(self, message: str) -> StrategyError:
        if self.at >= len(self.tokens):
            return strategy_error(self.text, len(self.text), 1, f"{message}, found the end")
        word, column = self.tokens[self.at]
        return strategy_error(self.text, column, len(word), f"{message}, found {word!r}")
