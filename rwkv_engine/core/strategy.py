"""Where each layer runs, in what precision, with which weights: `cuda fp16i8 *10 -> cpu fp32`.

    strategy = segment ( "->" segment )* | "auto"
    segment  = device dtype [ "*" N [ "+" ] ]
    device   = "cpu" | "cuda" [ ":" N ] | "mps" | "dml"
    dtype    = ( "fp32" | "fp16" | "bf16" ) [ "i8" | "i4" ]

Layers are dealt out from left to right; the output LayerNorm with the head counts as one layer more. `*N` takes N
layers; `*N+` keeps N on the device and streams to it all that nobody else takes; segments without `*` share what is
left. Spaces are free. It is the grammar of the `rwkv` package, and a string means the same here wherever it means
something there: what that package silently ignores or crashes on (`*0`, segments that get nothing, counts that do not
add up) is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

import torch

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.errors import StrategyError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Bits of one weight of a matrix; int4 has a 16-bit scale and minimum for 64 weights besides.
FORMAT_BITS = {"i8": 8.0, "i4": 4.5}


@dataclass(frozen=True)
class Placement:
    """Of one layer.

    Attributes:
        device: where it runs, a name torch knows (but for dml).
        dtype: of its activations, and of its weights if they are dense.
        weight_format: of its matrices: "dense", "i8" or "i4".
        resident: False if its matrices stay in main memory and are streamed to the device when needed.
    """

    device: str
    dtype: torch.dtype
    weight_format: str = "dense"
    resident: bool = True

    def nbytes(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """Bytes of tensors of these shapes; vectors are float32 whatever the matrices are."""
        bits = FORMAT_BITS.get(self.weight_format, 8.0 * self.dtype.itemsize)
        return sum(int(s[0] * s[1] * bits / 8) if len(s) == 2 else 4 * s[0] for s in shapes.values())


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

    def placement(self, resident: bool = True) -> Placement:
        """Of one layer in this segment."""
        return Placement(self.device, DTYPES[self.dtype], self.weight_format, resident)


@dataclass(frozen=True)
class Strategy:
    """What the user wrote, parsed. It does not know how many layers there are until `place`."""

    text: str
    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Parses a strategy string; `auto` takes what this machine has.

        Raises:
            StrategyError: with a caret under what is wrong.
        """
        if text.strip() == "auto":
            text = "cuda fp16" if torch.cuda.is_available() else "cpu fp32"
        return cls(text, tuple(_Parser(text).strategy()))

    def __str__(self) -> str:
        """The normal form; parsing it gives the same segments."""
        return " -> ".join(map(str, self.segments))

    def place(self, config: ModelConfig) -> tuple[Placement, ...]:
        """One placement for each layer and a last one for the output LayerNorm and the head.

        Raises:
            StrategyError: the counts do not add up to this model, or a segment gets nothing.
        """
        return tuple(p for share in self.shares(config) for p in share)

    def shares(self, config: ModelConfig) -> list[list[Placement]]:
        """The placements of `place`, segment by segment."""
        total = config.n_layer + 1
        rest = total - sum(s.count or 0 for s in self.segments)
        layers = f"this model has {total} layers, the head counted as one"
        free = [s for s in self.segments if s.count is None]
        streaming = [s for s in self.segments if s.streams]
        if rest < 0:
            raise self._error(self._overflowing(total), f"too many layers: {layers}")
        if streaming and free:
            raise self._error(free[0], f"gets no layer: '{streaming[0]}' takes all that have no place of their own")
        if len(free) > rest:
            raise self._error(free[rest], f"gets no layer: {layers}")
        if rest and not free and not streaming:
            last = self.segments[-1]
            raise self._error(
                last, f"{rest} layers have no place: {layers}; write the last segment without *{last.count}"
            )
        shares = []
        for segment in self.segments:
            if segment.count is None:
                # The peer's arithmetic: an even share of what is left, so the last free segment gets the odd ones.
                count = rest // len(free)
                rest, free = rest - count, free[1:]
                shares.append([segment.placement()] * count)
            else:
                streamed = rest if segment.streams else 0
                shares.append([segment.placement()] * segment.count + [segment.placement(False)] * streamed)
        return shares

    def explain(self, config: ModelConfig) -> list[tuple[str, str, str, str, str]]:
        """Rows (layers, device, precision, bytes, free memory) of the plan, nothing loaded yet."""
        rows = []
        first = 0
        for share in self.shares(config):
            for placement, group in groupby(share):
                last = first + len(list(group)) - 1
                size = sum(placement.nbytes(_shapes_of(config, i)) for i in range(first, last + 1))
                precision = str(placement.dtype).removeprefix("torch.")
                if placement.weight_format != "dense":
                    precision += f", {placement.weight_format} weights"
                if not placement.resident:
                    precision += ", streamed"
                rows.append(
                    (
                        _span(first, last, config.n_layer),
                        placement.device,
                        precision,
                        f"{size / 1e6:,.1f} MB",
                        _free_memory(placement.device),
                    )
                )
                first = last + 1
        return rows

    def check_runnable(self) -> None:
        """Refuses what parses but cannot run here.

        Raises:
            StrategyError: naming what is missing and what to use instead.
        """
        for s in self.segments:
            if s.device in ("mps", "dml"):
                raise self._error(s, f"{s.device} is not supported; use cpu or cuda")
            if s.device.startswith("cuda"):
                raise self._error(s, "cuda is not supported by this version; use cpu")
            if s.weight_format != "dense":
                raise self._error(s, f"{s.weight_format} weights are not supported by this version; use {s.dtype}")
            if s.dtype != "fp32":
                raise self._error(s, f"{s.dtype} is not supported by this version; use fp32")

    def _overflowing(self, total: int) -> Segment:
        used = 0
        for segment in self.segments:
            used += segment.count or 0
            if used > total:
                return segment
        raise AssertionError("called without an overflow")

    def _error(self, segment: Segment, message: str) -> StrategyError:
        return _error(self.text, segment.column, 1, message)


def _shapes_of(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Tensors of one placement: a block, the first with the embedding; or the head."""

    def belongs(name: str) -> bool:
        if name.startswith("blocks."):
            return int(name.split(".")[1]) == layer
        return layer == (0 if name.startswith("emb.") else config.n_layer)

    return {name: shape for name, shape in config.tensor_shapes().items() if belongs(name)}


def _span(first: int, last: int, n_layer: int) -> str:
    blocks = f"{first}" if first == min(last, n_layer - 1) else f"{first}-{min(last, n_layer - 1)}"
    if last < n_layer:
        return blocks
    return "head" if first == n_layer else f"{blocks}, head"


def _free_memory(device: str) -> str:
    if device.startswith("cuda") and torch.cuda.is_available():
        return f"{torch.cuda.mem_get_info(device)[0] / 1e6:,.0f} MB"
    if device == "cpu":
        try:
            with open("/proc/meminfo") as meminfo:
                kilobytes = next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable"))
            return f"{kilobytes / 1e3:,.0f} MB"
        except OSError:
            pass
    return "unknown"


def _error(text: str, column: int, width: int, message: str) -> StrategyError:
    return StrategyError(f"strategy: {message}\n  {text}\n  {' ' * column}{'^' * width}")


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
            raise _error(self.text, streaming[1].column, 1, "only one segment can stream ('+')")
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
            return _error(self.text, len(self.text), 1, f"{message}, found the end")
        word, column = self.tokens[self.at]
        return _error(self.text, column, len(word), f"{message}, found {word!r}")
