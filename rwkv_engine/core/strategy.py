"""Strategies: the device, precision and weight format of each layer, as in `cuda fp16i8 *10 -> cpu fp32`.

Segments take layers from left to right; the output LayerNorm and the head together count as one more layer. `*N` takes
N layers; `*N+` keeps N layers on the device and streams to it all layers that no other segment takes; segments without
`*` share the remaining layers. The grammar is that of the `rwkv` package (see `strategy_grammar`). A string that is
valid there means the same here; what that package silently ignores or crashes on (`*0`, segments that get no layer,
counts that do not add up to the model) is an error. `auto` chooses the best strategy that this machine can run and has
memory for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch

from rwkv_engine.checks import shown
from rwkv_engine.core.config import ModelConfig, TensorSpec
from rwkv_engine.core.dtypes import word_of
from rwkv_engine.core.hardware import free_memory, gpu_count, gpu_index
from rwkv_engine.core.placement import Placement
from rwkv_engine.core.strategy_auto import best_segments
from rwkv_engine.core.strategy_grammar import Segment, parse_segments, print_segments, strategy_error
from rwkv_engine.core.streaming import device_nbytes, streamed_nbytes
from rwkv_engine.errors import StrategyError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Strategy:
    """A parsed strategy. It does not depend on a model; `place` applies it to one.

    Two strategies are equal if their segments are equal, whatever their texts.

    Attributes:
        text: the text as the user wrote it, which error messages quote; `with_weights` and `with_dtype` keep it.
        segments: the segments from left to right; empty for `auto`, which `resolve` replaces for a model.
    """

    text: str = field(compare=False)
    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Parses a strategy string.

        Raises:
            StrategyError: it is not a string, or is malformed; a caret in the message marks the position.
        """
        if not isinstance(text, str):
            raise StrategyError(f"strategy: got {shown(text)}, expected text such as 'cpu fp32' or 'auto'")
        return cls(text, () if text.strip() == "auto" else parse_segments(text))

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Strategy:
        """The strategy with these segments, at least one; error messages quote its normal form."""
        text, placed = print_segments(segments)
        return cls(text, placed)

    def __str__(self) -> str:
        """The normal form; parsing it gives an equal strategy."""
        return print_segments(self.segments)[0] if self.segments else "auto"

    def with_weights(self, weight_format: str) -> Strategy:
        """The same strategy with all matrices in "dense", "i8" or "i4"; `auto` must be resolved first."""
        return self._edited(lambda segment: replace(segment, weight_format=weight_format))

    def with_dtype(self, dtype: str) -> Strategy:
        """The same strategy with all layers in "fp32", "fp16" or "bf16"; `auto` must be resolved first."""
        return self._edited(lambda segment: replace(segment, dtype=dtype))

    def _edited(self, edit: Callable[[Segment], Segment]) -> Strategy:
        if not self.segments:
            raise ValueError("auto has no segments to edit; call resolve first")
        return replace(self, segments=tuple(map(edit, self.segments)))

    def resolve(self, config: ModelConfig, dtype: str | None = None) -> Strategy:
        """Replaces `auto` by the best strategy for a model and the memory that is free now, see `strategy_auto`.

        Any other strategy is returned unchanged.

        Args:
            config: the model's sizes.
            dtype: "fp32", "fp16" or "bf16" for all layers, instead of the automatic choice.
        """
        if self.segments:
            return self
        gpus = [free_memory(f"cuda:{i}") or 0 for i in range(gpu_count())]
        dtypes = (torch.float16, torch.float32) if dtype is None else (DTYPES[dtype],) * 2
        half, single = (_layer_bytes(d, config) for d in dtypes)
        best = Strategy.of(best_segments(half, single, gpus, free_memory("cpu")))
        return best if dtype is None else best.with_dtype(dtype)

    def place(self, config: ModelConfig) -> tuple[Placement, ...]:
        """One placement for each layer and a last one for the output LayerNorm and the head.

        Raises:
            StrategyError: the counts do not add up to this model's number of layers, or a segment gets no layer.
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
            raise self._error(self._overflowing(total), f"too many layers: got {total - rest}, {layers}")
        if streaming and free:
            raise self._error(free[0], f"gets no layer: '{streaming[0]}' takes all remaining layers")
        if len(free) > rest:
            raise self._error(free[rest], f"gets no layer: {layers}")
        if rest and not free and not streaming:
            last = self.segments[-1]
            raise self._error(
                last, f"{rest} layers are not assigned: {layers}; write the last segment without *{last.count}"
            )
        shares = []
        for segment in self.segments:
            if segment.count is None:
                # As the `rwkv` package divides them: the first free segments round down, the last takes the remainder.
                count = rest // len(free)
                rest, free = rest - count, free[1:]
                shares.append([_placement(segment)] * count)
            else:
                streamed = rest if segment.streams else 0
                shares.append([_placement(segment)] * segment.count + [_placement(segment, resident=False)] * streamed)
        return shares

    def nbytes(self, config: ModelConfig) -> dict[str, int]:
        """The bytes of the weights on each device, by the device's name; those of streamed layers are on the CPU."""
        return device_nbytes(config, self.place(config))

    def streamed_nbytes(self, config: ModelConfig) -> int:
        """The bytes that each forward pass copies to a GPU, because layers are streamed."""
        return sum(streamed_nbytes(config, self.place(config)))

    def explain(self, config: ModelConfig) -> list[tuple[str, str, str, str, str]]:
        """The plan as rows of text (layers, device, precision, size, free memory), computed without loading weights."""
        rows = []
        first = 0
        for share in self.shares(config):
            if share and first + len(share) > config.n_layer:
                share[-1] = replace(share[-1], resident=True)  # the head is never streamed
            for placement, group in groupby(share):
                last = first + len(list(group)) - 1
                size = placement.nbytes(spec for spec in config.tensors().values() if first <= spec.layer <= last)
                precision = word_of(placement.dtype)
                if placement.weight_format != "dense":
                    precision += f", {placement.weight_format} weights"
                if not placement.resident:
                    precision += ", streamed"
                free = free_memory(placement.device)
                shown = "unknown" if free is None else f"{free / 1e6:,.0f} MB"
                layers = _span(first, last, config.n_layer)
                rows.append((layers, placement.device, precision, f"{size / 1e6:,.1f} MB", shown))
                first = last + 1
        return rows

    def check_runnable(self) -> None:
        """Refuses a well-formed strategy that cannot run on this machine or in this version.

        Raises:
            StrategyError: the message names what is missing and what to use instead.
        """
        for s in self.segments:
            if s.device in ("mps", "dml"):
                raise self._error(s, f"{s.device} is not supported; use cuda or cpu")
            if s.device.startswith("cuda"):
                self._check_gpu(s)

    def _check_gpu(self, s: Segment) -> None:
        count = gpu_count()
        if count == 0:
            raise self._error(s, "there is no GPU that torch can use here (rwkv-engine info tells why); use cpu")
        if gpu_index(s.device) >= count:
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
