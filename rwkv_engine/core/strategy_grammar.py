"""The text of a strategy, read into segments: `cuda fp16i8 *10 -> cpu fp32`.

strategy = segment ( "->" segment )*
segment  = device dtype [ "*" N [ "+" ] ]
device   = "cpu" | "cuda" [ ":" N ] | "mps" | "dml"
dtype    = ( "fp32" | "fp16" | "bf16" ) [ "i8" | "i4" ]
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rwkv_engine.errors import StrategyError


@dataclass(frozen=True)
class Segment:
    """One part of a strategy, as written; `column` is where it begins."""

    device: str
    dtype: str
    weight_format: str
    count: int | None
    streams: bool
    column: int

    def __str__(self) -> str:
        suffix = "" if self.weight_format == "dense" else self.weight_format
        count = "" if self.count is None else f" *{self.count}{'+' if self.streams else ''}"
        return f"{self.device} {self.dtype}{suffix}{count}"


def strategy_error(text: str, column: int, width: int, message: str) -> StrategyError:
    """An error with carets under what is wrong."""
    return StrategyError(f"strategy: {message}\n  {text}\n  {' ' * column}{'^' * width}")


def read_segments(text: str) -> tuple[Segment, ...]:
    """The segments of a strategy.

    Raises:
        StrategyError: with a caret under what is wrong.
    """
    return tuple(_Parser(text).strategy())


class _Parser:
    """Words and signs of the string, one after the other."""

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
        device = self.word(r"cpu|cuda(:\d+)?|mps|dml", "a device: cpu, cuda, cuda:N")
        dtype = self.word(
            r"(fp32|fp16|bf16)(i8|i4)?", "a precision: fp32, fp16 or bf16, with i8 or i4 behind it or not"
        )
        count, streams = None, False
        if self.accept("*"):
            count = int(self.word(r"\d+", "a number of layers"))
            streams = self.accept("+")
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
