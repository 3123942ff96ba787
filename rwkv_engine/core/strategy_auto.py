"""The strategy that `auto` stands for: as many float16 layers on the GPUs as fit, and the remaining ones on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rwkv_engine.core.strategy_grammar import Segment

# Bytes left free on every GPU: torch's context and libraries, a chunk's activations, states and CUDA graphs.
RESERVE = 1_500_000_000


def best_segments(half: Sequence[int], single: Sequence[int], gpus: Sequence[int], main: int | None) -> list[Segment]:
    """The segments of the best strategy for the memory that is free.

    GPUs are filled one after the other, so that activations are copied between devices as rarely as possible. Layers
    that fit on no GPU run on the CPU, in float32 if that fits into main memory, otherwise in bfloat16.

    Args:
        half, single: the bytes of each layer, the head last, with 16-bit and with 32-bit matrices.
        gpus: the free bytes of each GPU.
        main: the free bytes of main memory, or None if unknown.
    """
    segments = []
    placed = 0
    for i, free in enumerate(gpus):
        first, room = placed, free - RESERVE
        while placed < len(half) and half[placed] <= room:
            room -= half[placed]
            placed += 1
        if placed > first:
            segments.append(Segment("cuda" if len(gpus) == 1 else f"cuda:{i}", "fp16", count=placed - first))
    if placed < len(half):
        exact = main is None or sum(single[placed:]) < main
        segments.append(Segment("cpu", "fp32" if exact else "bf16"))
    else:
        segments[-1] = replace(segments[-1], count=None)  # the last segment takes the rest
    return segments
