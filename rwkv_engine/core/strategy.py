"""Where each layer runs, in what precision, with which weights: `cuda fp16i8 *10 -> cpu fp32`.

Layers are dealt out from left to right; the output LayerNorm with the head counts as one layer more. `*N` takes N
layers; `*N+` keeps N on the device and streams to it all that nobody else takes; segments without `*` share what is
left. Spaces are free. It is the grammar of the `rwkv` package (see `strategy_grammar`), and a string means the same
here wherever it means something there: what that package silently ignores or crashes on (`*0`, segments that get
nothing, counts that do not add up) is an error. `auto` takes the best that this machine can run and has memory for.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import torch

from rwkv_engine._version import __version__
from rwkv_engine.core.config import ModelConfig, TensorSpec
from rwkv_engine.core.placement import Placement
from rwkv_engine.core.strategy_auto import best_strategy
from rwkv_engine.core.strategy_grammar import Segment, read_segments, strategy_error
from rwkv_engine.errors import StrategyError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What parses already and runs from these versions on.
INT4_SINCE, STREAMING_SINCE = "0.4", "0.4"


@dataclass(frozen=True)
class Strategy:
    """What the user wrote, parsed. It does not know how many layers there are until `place`.

    Attributes:
        text: as written.
        segments: none for `auto`, which is decided for a model, see `resolve`.
    """

    text: str
    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Parses a strategy string.

        Raises:
            StrategyError: with a caret under what is wrong.
        """
        return cls(text, () if text.strip() == "auto" else read_segments(text))

    def __str__(self) -> str:
        """The normal form; parsing it gives the same segments."""
        return " -> ".join(map(str, self.segments)) or "auto"

    def resolve(self, config: ModelConfig, precision: str | None = None) -> Strategy:
        """`auto` decided for a model by the memory that is free now, see `strategy_auto`.

        Args:
            config: of the model.
            precision: as a strategy writes it, instead of the one that would be chosen.
        """
        if self.segments:
            return self
        gpus = [free_memory(f"cuda:{i}") or 0 for i in range(_gpu_count())]
        dtypes = (torch.float16, torch.float32) if precision is None else (DTYPES[precision[:4]],) * 2
        half, single = (_layer_bytes(dtype, config) for dtype in dtypes)
        text = best_strategy(half, single, gpus, free_memory("cpu"))
        return Strategy.parse(text if precision is None else re.sub("fp16|fp32|bf16", precision, text))

    def place(self, config: ModelConfig) -> tuple[Placement, ...]:
        """One placement for each layer and a last one for the output LayerNorm and the head.

        Raises:
            StrategyError: the counts do not add up to this model, or a segment gets nothing.
        """
        return tuple(p for share in self.shares(config) for p in share)

    def shares(self, config: ModelConfig) -> list[list[Placement]]:
        """The placements of `place`, segment by segment."""
        if not self.segments:
            return self.resolve(config).shares(config)
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
                shares.append([_placement(segment)] * count)
            else:
                streamed = rest if segment.streams else 0
                shares.append([_placement(segment)] * segment.count + [_placement(segment, resident=False)] * streamed)
        return shares

    def explain(self, config: ModelConfig) -> list[tuple[str, str, str, str, str]]:
        """Rows (layers, device, precision, bytes, free memory) of the plan, nothing loaded yet."""
        rows = []
        first = 0
        for share in self.shares(config):
            for placement, group in groupby(share):
                last = first + len(list(group)) - 1
                size = placement.nbytes(spec for spec in config.tensors().values() if first <= spec.layer <= last)
                precision = str(placement.dtype).removeprefix("torch.")
                free = free_memory(placement.device)
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
                        "unknown" if free is None else f"{free / 1e6:,.0f} MB",
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
                raise self._error(s, f"{s.device} is not supported; use cuda or cpu")
            if s.weight_format == "i4":
                needs = f"i4 weights need rwkv_engine {INT4_SINCE}, this is {__version__}"
                raise self._error(s, f"{needs}; use {s.dtype}i8 or {s.dtype}")
            if s.device.startswith("cuda"):
                self._check_gpu(s)

    def _check_gpu(self, s: Segment) -> None:
        if s.streams:
            needs = f"streaming to a GPU (+) needs rwkv_engine {STREAMING_SINCE}, this is {__version__}"
            raise self._error(s, f"{needs}; leave the rest to another segment: {s.device} {s.dtype} *N -> cpu fp32")
        count = _gpu_count()
        if count == 0:
            raise self._error(s, "there is no GPU that torch can use here (rwkv-engine info tells why); use cpu")
        if _gpu_index(s.device) >= count:
            names = "cuda:0 alone" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise self._error(s, f"there is no {s.device}: torch sees {names}")

    def _overflowing(self, total: int) -> Segment:
        used = 0
        for segment in self.segments:
            used += segment.count or 0
            if used > total:
                return segment
        raise AssertionError("called without an overflow")

    def _error(self, segment: Segment, message: str) -> StrategyError:
        return strategy_error(self.text, segment.column, 1, message)


def _placement(segment: Segment, resident: bool = True) -> Placement:
    return Placement(segment.device, DTYPES[segment.dtype], segment.weight_format, resident)


def _layer_bytes(dtype: torch.dtype, config: ModelConfig) -> list[int]:
    placement = Placement("cpu", dtype)
    layers: list[list[TensorSpec]] = [[] for _ in range(config.n_layer + 1)]
    for spec in config.tensors().values():
        layers[spec.layer].append(spec)
    return [placement.nbytes(specs) for specs in layers]


def _span(first: int, last: int, n_layer: int) -> str:
    blocks = f"{first}" if first == min(last, n_layer - 1) else f"{first}-{min(last, n_layer - 1)}"
    if last < n_layer:
        return blocks
    return "head" if first == n_layer else f"{blocks}, head"


def _gpu_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu_index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device, None if nothing tells."""
    if device.startswith("cuda") and _gpu_index(device) < _gpu_count():
        return torch.cuda.mem_get_info(device)[0]
    if device == "cpu":
        with suppress(OSError), open("/proc/meminfo") as meminfo:
            return 1024 * next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable"))
    return None
